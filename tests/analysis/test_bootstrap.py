"""The paired bootstrap and McNemar's test against SciPy's, and against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, bootstrap

from lad_pl.analysis.bootstrap import Difference, mcnemar, paired_bootstrap, rstd_differences


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


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (0, 1), (3, 3), (1, 9), (40, 12), (700, 801), (20_000, 20_500)])
def test_mcnemar_is_the_binomial_test(worse: int, better: int) -> None:
    expected = binomtest(worse, worse + better).pvalue if worse + better else 1.0
    assert mcnemar(worse, better) == pytest.approx(expected, rel=1e-6)


def test_rstd_differences_against_a_plain_bootstrap() -> None:
    """Samples drawn one by one, recall by position counted in loops, from another generator."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(4, (60, 5), generator=generator)
    chance = torch.tensor([0.9, 0.5, 0.8, 0.3])[targets]
    a = torch.rand(60, 5, generator=generator) < chance
    b = torch.rand(60, 5, generator=generator) < 0.7
    paired = rstd_differences([(a, b), (b, b)], targets, 4, draws=4000, seed=0)

    def rstd(correct: torch.Tensor, rows: Any) -> float:
        recalls = [correct[rows][targets[rows] == position].double().mean().item() for position in range(4)]
        return float(np.std(recalls, ddof=1))

    draws = np.random.default_rng(99)
    drawn = []
    for _ in range(700):
        rows = draws.integers(60, size=60)
        drawn.append(rstd(b, rows) - rstd(a, rows))
    everything = np.arange(60)
    assert paired[0].a == pytest.approx(rstd(a, everything))
    assert paired[0].b == pytest.approx(rstd(b, everything))
    difference = paired[0].difference
    assert difference.mean == pytest.approx(paired[0].b - paired[0].a)
    assert difference.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.015)
    assert difference.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.015)
    assert difference.high < 0 and difference.p < 0.05
    assert (paired[1].difference.low, paired[1].difference.high, paired[1].difference.p) == (0, 0, 1)


def test_rstd_without_two_positions_is_undefined() -> None:
    correct, targets = torch.ones(6, 1).bool(), torch.zeros(6, 1).long()
    paired = rstd_differences([(correct, correct)], targets, 4, draws=50, seed=0)[0]
    assert np.isnan([paired.a, paired.b, paired.difference.mean, paired.difference.low, paired.difference.p]).all()


def test_rstd_of_one_sample_says_nothing_about_chance() -> None:
    """Its permutations have an RStd, but drawing it again and again has no spread."""
    a, b = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    paired = rstd_differences([(a, b)], torch.tensor([[0, 1]]), 2, draws=50, seed=0)[0]
    assert paired.difference.mean == pytest.approx(-np.std([1, 0], ddof=1))
    assert np.isnan([paired.difference.low, paired.difference.high, paired.difference.p]).all()
