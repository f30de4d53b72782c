"""How long the hard negatives take, beside a plain double loop over pairs: ``python -m benchmarks.hard_negatives``."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lad_pl.data.prepare.hard_negatives import Pool, category_bits, nearest_candidates

DIMENSIONS, CATEGORIES, NEGATIVES = 768, 80, 11


def random_pool(size: int, seed: int = 0) -> tuple[Pool, list[frozenset[int | str]]]:
    generator = np.random.default_rng(seed)
    sets = [frozenset(generator.choice(CATEGORIES, generator.integers(1, 6)).tolist()) for _ in range(size)]
    # Random vectors of many dimensions are orthogonal; with a common part a few captions in a thousand are too similar.
    images, texts = (generator.normal(size=(size, DIMENSIONS)) + shift for shift in (0.5, 2.7))
    unit = [torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float() for x in (images, texts)]
    return Pool(*unit, category_bits(sets)), sets


def double_loop(pool: Pool, sets: list[frozenset[int | str]], anchors: list[int]) -> list[list[int]]:
    images, texts = pool.images.numpy(), pool.texts.numpy()
    found = []
    for anchor in anchors:
        candidates = []
        for other in range(len(pool)):
            if other == anchor or not sets[anchor] - sets[other]:
                continue
            text_similarity = float(np.dot(texts[anchor], texts[other]))
            image_similarity = float(np.dot(images[anchor], images[other]))
            if text_similarity < 0.9:
                candidates.append((image_similarity, other))
        candidates.sort(key=lambda pair: -pair[0])
        found.append([other for _, other in candidates[:NEGATIVES]])
    return found


def timed(function: Callable[[], Any], runs: int = 5) -> tuple[float, Any]:
    """Seconds of the fastest run, which other work on the machine disturbed least, and its result."""
    seconds, result = [], None
    for _ in range(runs):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    pool, sets = random_pool(20_000)
    few, many = list(range(5)), list(range(1_000))
    loop, expected = timed(lambda: double_loop(pool, sets, few))
    blocks, found = timed(lambda: nearest_candidates(pool, many, NEGATIVES))
    table = Table("", "anchors", "pool", "seconds", "ms per anchor")
    for name, seconds, anchors in (("double loop", loop, few), ("lad_pl", blocks, many)):
        cost = f"{1000 * seconds / len(anchors):.2f}"
        table.add_row(name, f"{len(anchors):,}", f"{len(pool):,}", f"{seconds:.2f}", cost)
    Console().print(table)
    print(f"Ratio per anchor: {loop / len(few) / (blocks / len(many)):.0f}")
    print(f"Same images for the {len(few)} anchors of both: {found[: len(few)].tolist() == expected}")


if __name__ == "__main__":
    main()
