"""The hard demo's world: two objects that differ in every attribute; numbering, captions, changes and drawings."""

import hashlib
import random

import pytest

from lad_pl.demo.pairs import HARD, PAIR_COUNT, TEMPLATES, Pair, alterations, altered, exchanges, render_array

PAIR = Pair("plain", "red", "star", "striped", "blue", "ring")


def test_every_index_is_one_pair_of_different_objects():
    pairs = [Pair.from_index(index) for index in range(PAIR_COUNT)]
    assert PAIR_COUNT == (3 * 2) * (8 * 7) * (6 * 5)
    assert len(set(pairs)) == PAIR_COUNT
    assert [pair.index for pair in pairs] == list(range(PAIR_COUNT))
    assert all(one != other for pair in pairs for one, other in zip(pair.of("left"), pair.of("right"), strict=True))


@pytest.mark.parametrize("index", [-1, PAIR_COUNT])
def test_no_pair_beyond_the_last(index):
    with pytest.raises(ValueError, match=r"outside 0\.\.10079"):
        Pair.from_index(index)


def test_splits_are_disjoint_and_complete():
    parts = (HARD.splits.training, HARD.splits.validation, HARD.splits.test)
    assert sorted(index for part in parts for index in part) == list(range(PAIR_COUNT))
    assert len(HARD.splits.validation) == len(HARD.splits.test) == 756  # together 15 %


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_captions_tell_pairs_apart(template):
    assert len({Pair.from_index(index).caption(template) for index in range(PAIR_COUNT)}) == PAIR_COUNT


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_a_caption_says_each_word_once_after_the_side_that_it_is_about(template):
    said = {"left": [], "right": []}
    for word in PAIR.caption(template).split():
        if word in said:
            side = word
        elif word in PAIR.words:
            said[side].append(word)
    assert {side: sorted(words) for side, words in said.items()} == {s: sorted(PAIR.of(s)) for s in said}


def test_an_alteration_changes_one_word_and_an_exchange_only_who_has_it():
    near = random.Random(0).sample(range(PAIR_COUNT), 50)
    for pair in map(Pair.from_index, near):
        assert len(set(alterations(pair))) == 2 * (1 + 6 + 4)
        assert all(len(pair.differing_attributes(other)) == 1 for other in alterations(pair))
        assert len(set(exchanges(pair))) == 3
        for other, kind in zip(exchanges(pair), ("pattern", "colour", "shape"), strict=True):
            assert pair.differing_attributes(other) == [f"left_{kind}", f"right_{kind}"]
            assert sorted(pair.words) == sorted(other.words)
            assert pair in exchanges(other)


def test_three_changes_stay_within_the_world():
    generator = random.Random(0)
    drawn = [altered(PAIR, count, generator) for count in (1, 2, 3) for _ in range(50)]
    assert all(0 <= pair.index < PAIR_COUNT for pair in drawn)
    assert all(len(PAIR.differing_attributes(pair)) in (1, 2) for pair in drawn[:50])


def test_drawings_never_change():
    """Pinned over all shapes, patterns and colours: an annotation file means these very pixels."""
    digest = hashlib.sha256()
    for index in range(0, PAIR_COUNT, 97):
        digest.update(render_array(Pair.from_index(index), index % 7).tobytes())
    assert digest.hexdigest()[:16] == "ca42f6e8ce43d67a"


def test_the_name_says_all():
    image = HARD.load_image("pair-4031-17.png")
    assert (image.size, image.mode) == ((56, 56), "RGB")
    assert image.tobytes() == HARD.render(Pair.from_index(4031), 17).tobytes()
