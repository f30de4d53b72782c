"""The demo's annotation files match their description, and are the committed ones."""

import json

import pytest

from lad_pl.demo.scenes import TEMPLATES, TEST_SCENES, VALIDATION_SCENES, Scene, parse_name
from lad_pl.demo.sets import (
    CANDIDATE_COUNTS,
    DATA_DIR,
    KINDS,
    SPLITS,
    as_json,
    build_all,
    build_set,
    differing_attributes,
)

SETS = [(split, candidates, kind) for split in SPLITS for candidates in CANDIDATE_COUNTS for kind in KINDS]


def scenes_of(sample):
    return [Scene.from_index(parse_name(name)[0]) for name in sample["image_ids"]]


def test_committed_files_equal_a_rebuild():
    files = build_all()
    assert sorted(files) == sorted(path.name for path in DATA_DIR.glob("*.json"))
    for name, content in files.items():
        assert (DATA_DIR / name).read_bytes() == content.encode(), name


def test_one_sample_per_line():
    samples = build_set("validation", 4, "random")
    lines = as_json(samples).splitlines()
    assert json.loads(as_json(samples)) == samples
    assert json.loads(lines[3].rstrip(",")) == samples[2]


@pytest.mark.parametrize(("split", "candidates", "kind"), SETS)
def test_set_is_as_specified(split, candidates, kind):
    samples = build_set(split, candidates, kind)
    own, other = (TEST_SCENES, VALIDATION_SCENES) if split == "annotations" else (VALIDATION_SCENES, TEST_SCENES)
    assert [sample["id"] for sample in samples] == list(range(305 if split == "annotations" else 105))
    for sample in samples:
        scenes = scenes_of(sample)
        target = scenes[sample["index"]]
        assert len(set(scenes)) == candidates
        assert target.index in own
        assert not {scene.index for scene in scenes} & set(other)
        fitting = [s for s in scenes if any(s.caption(t) == sample["caption"] for t in range(len(TEMPLATES)))]
        assert fitting == [target]
    counts = [sum(sample["index"] == k for sample in samples) for k in range(candidates)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("candidates", CANDIDATE_COUNTS)
def test_adversarial_images_are_alike(candidates):
    for sample in build_set("annotations", candidates, "adversarial"):
        scenes = scenes_of(sample)
        assert all(differing_attributes(a, b) in (1, 2) for a in scenes for b in scenes if a != b)


@pytest.mark.parametrize("candidates", CANDIDATE_COUNTS)
@pytest.mark.parametrize("extreme", [min, max])
def test_images_alone_do_not_tell_the_target(candidates, extreme):
    """The most central image, and the least, is the target as often as chance has it (3.5 sigma)."""
    samples = [s for split in SPLITS for s in build_set(split, candidates, "adversarial")]
    hits = 0.0
    for sample in samples:
        scenes = scenes_of(sample)
        distances = [sum(differing_attributes(a, b) for b in scenes) for a in scenes]
        picked = [k for k, distance in enumerate(distances) if distance == extreme(distances)]
        hits += (sample["index"] in picked) / len(picked)
    chance = 1 / candidates
    deviation = (chance * (1 - chance) / len(samples)) ** 0.5
    assert abs(hits / len(samples) - chance) < 3.5 * deviation
