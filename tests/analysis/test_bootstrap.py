"""The paired bootstrap against scipy's, and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from lad_pl.analysis.bootstrap import Difference, paired_bootstrap


def _answers(advantage: float, num_samples: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of answers that share the difficulty of each sample."""
    draw = torch.Generator().manual_seed(seed)
    easy = torch.rand(num_samples, 1, generator=draw)
    a = torch.rand(num_samples, 5, generator=draw) < (easy + advantage).clamp(0, 1)
    b = torch.rand(num_samples, 5, generator=draw) < easy
    return a, b


def test_the_interval_is_scipys_over_the_samples_means():
    a, b = _answers(0.08)
    means = a.double().mean(1) - b.double().mean(1)
    theirs = bootstrap(
        (means.numpy(),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(3)
    ).confidence_interval
    ours = paired_bootstrap(a, b, draws=20_000)
    assert ours.mean == pytest.approx(float(means.mean()))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_p_is_that_of_a_plain_loop_over_whole_samples():
    a, b = _answers(0.015)
    means = (a.double().mean(1) - b.double().mean(1)).numpy()
    draw = np.random.default_rng(5)
    resampled = np.array([means[draw.integers(0, len(means), len(means))].mean() for _ in range(4000)])
    p = 2 * min((resampled <= 1e-12).mean(), (resampled >= -1e-12).mean())
    assert 0.02 < p < 0.9  # else the comparison would say little
    assert paired_bootstrap(a, b).p == pytest.approx(p, abs=0.03)


def test_permutations_of_one_sample_are_no_samples_of_their_own():
    a, b = _answers(0.05, num_samples=40)
    alone = paired_bootstrap(a[:, :1], b[:, :1])
    repeated = paired_bootstrap(a[:, :1].expand(-1, 5), b[:, :1].expand(-1, 5))
    assert repeated.p == alone.p
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low)


def test_the_order_of_the_two_is_the_sign():
    a, b = _answers(0.05)
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert back.mean == -forth.mean and (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=0.01)
    assert forth.significant and back.significant


def test_equal_answers_differ_by_nothing():
    a, _ = _answers(0.0)
    same = paired_bootstrap(a, a)
    assert same == Difference(0.0, 0.0, 0.0, 1.0) and not same.significant


def test_one_sample_says_nothing_about_chance():
    one = paired_bootstrap(torch.tensor([[True, True]]), torch.tensor([[False, True]]))
    assert one.mean == 0.5 and math.isnan(one.p) and math.isnan(one.low) and not one.significant


def test_what_does_not_pair_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(torch.ones(3, 5).bool(), torch.ones(4, 5).bool())
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(torch.ones(0, 5).bool(), torch.ones(0, 5).bool())
