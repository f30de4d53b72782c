"""The demo's annotation files match their description, and are the committed ones."""

import json

import pytest

from lad_pl.demo.pairs import HARD, alterations, exchanges
from lad_pl.demo.scenes import STANDARD
from lad_pl.demo.sets import CANDIDATE_COUNTS, KINDS, PROJECT, SPLITS, as_json, build_all, build_set
from lad_pl.demo.worlds import WORLDS

SETS = [
    (world, split, candidates, kind)
    for world in WORLDS.values()
    for split in SPLITS
    for candidates in CANDIDATE_COUNTS
    for kind in KINDS
]


def scenes_of(sample, world):
    return [world.scene.from_index(world.parse_name(name)[0]) for name in sample["image_ids"]]


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_committed_files_equal_a_rebuild(world):
    files, folder = build_all(world), PROJECT / world.data
    assert sorted(files) == sorted(path.name for path in folder.glob("*.json"))
    for name, content in files.items():
        assert (folder / name).read_bytes() == content.encode(), name


def test_one_sample_per_line():
    samples = build_set("validation", 4, "random")
    lines = as_json(samples).splitlines()
    assert json.loads(as_json(samples)) == samples
    assert json.loads(lines[3].rstrip(",")) == samples[2]


@pytest.mark.parametrize(("world", "split", "candidates", "kind"), SETS)
def test_set_is_as_specified(world, split, candidates, kind):
    samples = build_set(split, candidates, kind, world)
    own, other = world.splits.test, world.splits.validation
    if split == "validation":
        own, other = other, own
    assert [sample["id"] for sample in samples] == list(range(305 if split == "annotations" else 105))
    templates = range(len(world.scene.TEMPLATES))
    for sample in samples:
        scenes = scenes_of(sample, world)
        target = scenes[sample["index"]]
        assert len(set(scenes)) == candidates
        assert target.index in own
        assert not {scene.index for scene in scenes} & set(other)
        fitting = [s for s in scenes if any(s.caption(t) == sample["caption"] for t in templates)]
        assert fitting == [target]
    counts = [sum(sample["index"] == k for sample in samples) for k in range(candidates)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("candidates", CANDIDATE_COUNTS)
def test_adversarial_images_are_alike(candidates):
    for sample in build_set("annotations", candidates, "adversarial"):
        scenes = scenes_of(sample, STANDARD)
        assert all(len(a.differing_attributes(b)) in (1, 2) for a in scenes for b in scenes if a != b)


def change(centre, scene):
    """What was done to a pair, by its words alone: an attribute of one object, or one exchanged between the two."""
    changed = [k for k in range(6) if centre.words[k] != scene.words[k]]
    if len(changed) == 1:
        return "alteration"
    exchanged = len(changed) == 2 and changed[1] == changed[0] + 3
    there_and_back = exchanged and (scene.words[changed[0]], scene.words[changed[1]]) == (
        centre.words[changed[1]],
        centre.words[changed[0]],
    )
    return "exchange" if there_and_back else None


@pytest.mark.parametrize(("candidates", "most"), [(4, 2), (8, 3), (12, 3)])
def test_adversarial_pairs_are_one_change_away_from_a_hidden_centre(candidates, most):
    """Half of the images, three at most, are exchanges; the target is one about as often as any other image is."""
    counts, targets = [], []
    for sample in build_set("annotations", candidates, "adversarial", HARD):
        scenes = scenes_of(sample, HARD)
        centres = [*exchanges(scenes[0]), *alterations(scenes[0])]
        kinds = [[change(centre, scene) for scene in scenes] for centre in centres]
        kinds = max((of_one for of_one in kinds if None not in of_one), key=lambda of_one: of_one.count("exchange"))
        counts.append(kinds.count("exchange"))
        targets.append(kinds[sample["index"]] == "exchange")
    assert max(counts) == most
    assert sum(counts) > 0.8 * most * len(counts)  # an exchange held out by the other split is replaced
    share = sum(counts) / len(counts) / candidates
    assert abs(sum(targets) / len(targets) - share) < 3.5 * (share * (1 - share) / len(targets)) ** 0.5


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("candidates", CANDIDATE_COUNTS)
@pytest.mark.parametrize("extreme", [min, max])
def test_images_alone_do_not_tell_the_target(world, candidates, extreme):
    """The most central image, and the least, is the target as often as chance has it (3.5 sigma)."""
    samples = [s for split in SPLITS for s in build_set(split, candidates, "adversarial", world)]
    hits = 0.0
    for sample in samples:
        scenes = scenes_of(sample, world)
        distances = [sum(len(a.differing_attributes(b)) for b in scenes) for a in scenes]
        picked = [k for k, distance in enumerate(distances) if distance == extreme(distances)]
        hits += (sample["index"] in picked) / len(picked)
    chance = 1 / candidates
    deviation = (chance * (1 - chance) / len(samples)) ** 0.5
    assert abs(hits / len(samples) - chance) < 3.5 * deviation
