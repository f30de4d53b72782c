"""Finding hard negatives in blocks of a matrix product, beside a plain double loop over pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.measure import Figure, interleaved, ratios, run
from lad_pl.data.prepare.hard_negatives import Pool, category_bits, nearest_candidates

DIMENSIONS, CATEGORIES, NEGATIVES = 768, 80, 11


@dataclass(frozen=True)
class Options:
    pool: int = 20_000
    """Images that negatives are taken from."""
    anchors: int = 1_000
    """Images that get negatives."""
    loop_anchors: int = 5
    """The first of them, which the double loop does as well."""
    repeats: int = 5
    """How often both are measured, in turns."""


def hard_negatives(options: Options) -> list[Figure]:
    """Milliseconds per anchor, and whether both find the same images."""
    pool, sets = random_pool(options.pool)
    few, many = range(options.loop_anchors), list(range(options.anchors))
    expected: list[list[int]] = []
    found: list[list[int]] = []

    def loop() -> None:
        expected[:] = [looped(pool, sets, anchor) for anchor in few]

    def blocks() -> None:
        found[:] = nearest_candidates(pool, many, NEGATIVES).tolist()

    seconds = interleaved({"loop": loop, "blocks": blocks}, options.repeats)
    theirs = tuple(1000 * value / len(few) for value in seconds["loop"])
    ours = tuple(1000 * value / len(many) for value in seconds["blocks"])
    differing = sum(one != other for one, other in zip(expected, found, strict=False))
    return [
        Figure("times as fast per anchor", ratios(theirs, ours)),
        Figure("anchors with other negatives", (float(differing),), at_most=0, note=f"of {len(few)}"),
        Figure("double loop, per anchor", theirs, " ms", note=f"{len(few)} anchors, {len(pool)} images"),
        Figure("lad_pl, per anchor", ours, " ms", note=f"{len(many)} anchors, {len(pool)} images"),
    ]


def random_pool(size: int, seed: int = 0) -> tuple[Pool, list[frozenset[int | str]]]:
    generator = np.random.default_rng(seed)
    sets = [frozenset(generator.choice(CATEGORIES, generator.integers(1, 6)).tolist()) for _ in range(size)]
    # Random vectors of many dimensions are orthogonal; with a common part a few captions in a thousand are too similar.
    images, texts = (generator.normal(size=(size, DIMENSIONS)) + shift for shift in (0.5, 2.7))
    unit = [torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float() for x in (images, texts)]
    return Pool(*unit, category_bits(sets)), sets


def looped(pool: Pool, sets: list[frozenset[int | str]], anchor: int) -> list[int]:
    """One anchor's negatives, pair by pair."""
    images, texts = pool.images.numpy(), pool.texts.numpy()
    candidates = []
    for other in range(len(pool)):
        if other == anchor or not sets[anchor] - sets[other]:
            continue
        text_similarity = float(np.dot(texts[anchor], texts[other]))
        image_similarity = float(np.dot(images[anchor], images[other]))
        if text_similarity < 0.9:
            candidates.append((image_similarity, other))
    candidates.sort(key=lambda pair: -pair[0])
    return [other for _, other in candidates[:NEGATIVES]]


if __name__ == "__main__":
    run(hard_negatives)
