"""Batches hold as many samples as fit, of like length."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lad_pl.data.batches import plan_batches


@pytest.mark.parametrize("seed", range(5))
def test_plans_hold_every_sample_once_and_little_padding(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = (700 + generator.integers(1, 120, 500)).tolist()
    plan = plan_batches(lengths, 5, None, 32_768)
    assert sorted(sample for batch in plan for sample in batch) == list(range(500))
    padded = sum(len(batch) * max(lengths[sample] for sample in batch) for batch in plan)
    assert padded / sum(lengths) < 1.05
    assert all(5 * len(batch) * max(lengths[sample] for sample in batch) <= 32_768 for batch in plan)
    assert len(plan) <= 1.1 * math.ceil(5 * sum(lengths) / 32_768)
    assert max(lengths) == lengths[plan[0][0]]


def test_a_sample_beyond_the_budget_travels_alone() -> None:
    assert plan_batches([50, 10, 10], 2, None, 40) == [[0], [1, 2]]


def test_samples_of_one_length_keep_their_order() -> None:
    assert plan_batches([0] * 5, 4, 2, 1) == [[0, 1], [2, 3], [4]]
