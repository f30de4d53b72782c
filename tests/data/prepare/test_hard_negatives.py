import numpy as np
import pytest
import torch

from lad_pl.data.prepare import hard_negatives
from lad_pl.data.prepare.hard_negatives import Pool, category_bits, exclusions, nearest_candidates


def random_pool(seed: int, size: int, num_categories: int, ties: bool) -> tuple[Pool, list[frozenset[int | str]]]:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(2, size, 16))
    if ties:  # every image and every caption several times
        vectors = vectors[:, generator.integers(0, size // 6, size)]
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    images, texts = torch.from_numpy(vectors).float()
    sets = [frozenset(generator.choice(num_categories, generator.integers(1, 5)).tolist()) for _ in range(size)]
    return Pool(images, texts, category_bits(sets)), sets


def plain_loop(pool, sets, anchor, k, threshold, exclude):
    images, texts = pool.images.double().numpy(), pool.texts.double().numpy()
    candidates, same_categories, same_text = [], 0, 0
    for other in range(len(pool)):
        if other == anchor:
            continue
        excluded = not (sets[anchor] - sets[other]) if exclude == "subset" else sets[anchor] == sets[other]
        if excluded:
            same_categories += 1
        elif sum(a * b for a, b in zip(texts[anchor], texts[other], strict=True)) >= threshold:
            same_text += 1
        else:
            candidates.append((-sum(a * b for a, b in zip(images[anchor], images[other], strict=True)), other))
    nearest = [other for _, other in sorted(candidates)[:k]]
    return nearest, len(candidates), same_categories, same_text


@pytest.mark.parametrize("exclude", ["subset", "identical"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_categories", [5, 200])
@pytest.mark.parametrize("spare", [0, 3, 32])
def test_equals_a_plain_double_loop(monkeypatch, exclude, ties, num_categories, spare):
    monkeypatch.setattr(hard_negatives, "_SPARE", spare)  # many, some or hardly any anchors need all captions
    monkeypatch.setattr(hard_negatives, "_BLOCK_ELEMENTS", 7 * 90)  # several blocks, the last one shorter
    pool, sets = random_pool(num_categories, 90, num_categories, ties)
    anchors = list(range(0, 90, 4))
    found = nearest_candidates(pool, anchors, 6, 0.45, exclude)
    for row, anchor in enumerate(anchors):
        nearest, *counts = plain_loop(pool, sets, anchor, 6, 0.45, exclude)
        assert list(exclusions(pool, anchor, 0.45, exclude)) == counts
        assert found[row].tolist() == (nearest if len(nearest) == 6 else [-1] * 6)


def test_the_rules_differ_as_they_say():
    images = torch.eye(4)
    bits = category_bits([frozenset({"dog"}), frozenset({"dog"}), frozenset({"dog", "cat"}), frozenset({"cat"})])
    pool = Pool(images, images, bits)
    assert exclusions(pool, 0, exclude="subset").same_categories == 2
    assert exclusions(pool, 0, exclude="identical").same_categories == 1
    assert exclusions(Pool(images, images), 0).same_categories == 0


def test_result_does_not_depend_on_the_blocks(monkeypatch):
    pool, _ = random_pool(3, 300, 20, ties=True)
    whole = nearest_candidates(pool, range(300), 11)
    for elements in (1, 300 * 13):
        monkeypatch.setattr(hard_negatives, "_BLOCK_ELEMENTS", elements)
        assert torch.equal(nearest_candidates(pool, range(300), 11), whole)


def test_anchors_with_too_few_candidates_are_told_apart():
    pool, _ = random_pool(0, 12, 30, ties=False)
    texts = pool.texts.clone()
    texts[:9] = texts[0]  # anchors 0 to 8 have the same caption
    done: list[int] = []
    found = nearest_candidates(Pool(pool.images, texts), [0, 9], 5, report=done.append)
    assert exclusions(Pool(pool.images, texts), 0) == (3, 0, 8)
    assert found[0].tolist() == [-1] * 5 and found[1].min() >= 0
    assert sum(done) == 2


def test_memory_is_bounded_by_the_block(monkeypatch):
    """No matrix of all anchors by the whole pool."""
    pool, _ = random_pool(1, 400, 10, ties=False)
    monkeypatch.setattr(hard_negatives, "_BLOCK_ELEMENTS", 400 * 10)
    largest = 0
    block = hard_negatives._block

    def watched(pool, rows, *arguments):
        nonlocal largest
        largest = max(largest, len(rows) * len(pool))
        return block(pool, rows, *arguments)

    monkeypatch.setattr(hard_negatives, "_block", watched)
    nearest_candidates(pool, range(400), 3)
    assert largest == 400 * 10
