"""The demo's world: numbering, names, splits and drawings."""

import hashlib

import numpy as np
import pytest

from lad_pl.demo.scenes import ATTRIBUTES, SCENE_COUNT, STANDARD, TEMPLATES, Scene, render_array
from lad_pl.demo.worlds import WORLDS, load_image


def test_every_index_is_one_scene():
    scenes = [Scene.from_index(index) for index in range(SCENE_COUNT)]
    assert SCENE_COUNT == 5760
    assert len(set(scenes)) == SCENE_COUNT
    assert [scene.index for scene in scenes] == list(range(SCENE_COUNT))


@pytest.mark.parametrize("index", [-1, SCENE_COUNT])
def test_no_scene_beyond_the_last(index):
    with pytest.raises(ValueError, match=r"outside 0\.\.5759"):
        Scene.from_index(index)


def test_splits_are_disjoint_and_complete():
    splits = STANDARD.splits
    parts = (splits.training, splits.validation, splits.test)
    assert sorted(index for part in parts for index in part) == list(range(SCENE_COUNT))
    assert len(splits.validation) == len(splits.test) == 432  # together 15 %


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_captions_tell_scenes_apart(template):
    captions = {Scene.from_index(index).caption(template) for index in range(SCENE_COUNT)}
    assert len(captions) == SCENE_COUNT


def test_no_word_serves_two_attributes():
    words = [word for words in ATTRIBUTES.values() for word in words]
    assert len(set(words)) == len(words)


def test_names_round_trip():
    assert STANDARD.render_name(4031, 17) == "scene-4031-17.png"
    for world in WORLDS.values():
        for scene in (0, 7, world.count - 1):
            for jitter in (0, 3, 999_999_999):
                assert world.parse_name(world.render_name(scene, jitter)) == (scene, jitter)


@pytest.mark.parametrize(
    "name",
    ["", "cat.png", "scene-5760-1.png", "scene-01-1.png", "scene-1-01.png", "scene-1.png", "scene-1-1.png\n",
     "scene-1-1.jpg", "a/scene-1-1.png", "scene--1-1.png", "scene-1-1234567890.png", "scene-\u0661-1.png",
     "pair-10080-1.png", "pair-1.png"],
)  # fmt: skip
def test_other_names_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match="is no demo image") as caught:
        load_image(name)
    assert "\n" not in str(caught.value)


def test_image_is_small_rgb_and_the_name_says_all():
    image = load_image("scene-4031-17.png")
    assert image.size == (56, 56)
    assert image.mode == "RGB"
    assert image.tobytes() == STANDARD.render(Scene.from_index(4031), 17).tobytes()
    assert image.tobytes() != load_image("scene-4031-18.png").tobytes()


def test_drawings_never_change():
    """Pinned over all shapes, patterns, places and grounds: an annotation file means these very pixels."""
    digest = hashlib.sha256()
    for index in range(0, SCENE_COUNT, 53):
        digest.update(render_array(Scene.from_index(index), index % 7).tobytes())
    assert digest.hexdigest()[:16] == "831b3b2da9767592"


def test_jitter_stays_small():
    """Two drawings of a scene are nearer to each other than to a scene of another place."""
    scene = Scene("large", "plain", "red", "circle", "left", "snow")
    other = Scene("large", "plain", "red", "circle", "right", "snow")
    one, two, far = (render_array(s, jitter).astype(float) for s, jitter in ((scene, 1), (scene, 2), (other, 1)))
    assert np.abs(one - two).mean() < 0.5 * np.abs(one - far).mean()
