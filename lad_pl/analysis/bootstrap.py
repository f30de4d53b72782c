"""Whether two sets of answers to the same prompts differ by more than chance: paired bootstrap, McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lad_pl.metrics import nanstd

_DRAWS_AT_A_TIME = 500


@dataclass(frozen=True)
class Difference:
    """A difference of two shares, in [-1, 1], with its bootstrap; NaN where one sample is all there is."""

    mean: float
    """On the samples at hand."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    p: float
    """Two-sided: how probable a difference of at least this size is, were there none."""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Paired:
    """One statistic of A and of B on the same prompts."""

    a: float
    b: float
    difference: Difference
    """B less A."""


def paired_bootstrap(correct_a: Tensor, correct_b: Tensor, draws: int = 10_000, seed: int = 0) -> Difference:
    """Paired bootstrap over samples of the difference of two accuracies, A less B.

    A sample's T permutations are one question T times, so they are drawn together (a cluster bootstrap). All that
    counts of a sample is d, how many of its T prompts A answers correctly more than B, and d has few values:
    resampling G samples with replacement is a multinomial draw of G over the histogram of d. The interval is the
    percentile interval; p is the smallest level at which it would leave out zero, 2 min(P(mean <= 0), P(mean >= 0)),
    at least 2 / (draws + 1) (Efron & Tibshirani 1993, 13.3 and 15.4).

    >>> import torch
    >>> paired_bootstrap(torch.ones(9, 5).bool(), torch.zeros(9, 5).bool(), draws=199)
    Difference(mean=1.0, low=1.0, high=1.0, p=0.01)

    Args:
        correct_a: (G, T) whether A answers each prompt of G samples correctly.
        correct_b: (G, T) the same for B, prompt by prompt.
        draws: how many times the samples are resampled.
        seed: of the draws.

    Raises:
        ValueError: the shapes differ, or there are no samples.
    """
    if correct_a.shape != correct_b.shape or correct_a.ndim != 2 or not correct_a.numel():
        raise ValueError(f"Two (G, T) tensors of one shape are compared, not {correct_a.shape} and {correct_b.shape}.")
    num_samples, num_permutations = correct_a.shape
    surplus = correct_a.long().sum(1) - correct_b.long().sum(1)
    values, counts = np.unique(surplus.cpu().numpy(), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(num_samples, counts / num_samples, size=draws)
    sums = drawn @ values  # whole numbers, so that a difference of zero is exactly zero
    mean = float(surplus.double().mean()) / num_permutations
    return _difference(mean, sums / (num_samples * num_permutations), num_samples)


def rstd_differences(
    correct: Sequence[tuple[Tensor, Tensor]], targets: Tensor, num_candidates: int, draws: int, seed: int
) -> list[Paired]:
    """Paired bootstrap over samples of differences in RStd; a sample's permutations are drawn together.

    Args:
        correct: pairs of (G, T): whether A, and whether B, answers each prompt correctly.
        targets: (G, T) position of the correct image.
        num_candidates: N.
        draws: how many times the samples are resampled.
        seed: of the draws.

    Returns:
        RStd of A and B, the difference B less A, its interval and p as :func:`paired_bootstrap` has them; NaN where
        fewer than two positions held the correct image, or one sample is all there is.
    """
    at = torch.nn.functional.one_hot(targets, num_candidates)
    sides = [side for pair in correct for side in pair]
    hits = torch.stack([(at * side[:, :, None]).sum(1) for side in sides], 1).double()  # (G, 2 R, N)
    asked = at.sum(1).double()  # (G, N)
    num_samples = len(asked)
    observed = nanstd(hits.sum(0) / asked.sum(0))
    generator = np.random.default_rng(seed)
    drawn = []
    for start in range(0, draws, _DRAWS_AT_A_TIME):
        size = min(_DRAWS_AT_A_TIME, draws - start)
        counts = generator.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size)
        weights = torch.from_numpy(counts).double()
        drawn.append(nanstd(torch.tensordot(weights, hits, 1) / (weights @ asked)[:, None]))
    spread = torch.cat(drawn)
    return [
        Paired(
            float(observed[r]),
            float(observed[r + 1]),
            _difference(float(observed[r + 1] - observed[r]), (spread[:, r + 1] - spread[:, r]).numpy(), num_samples),
        )
        for r in range(0, len(sides), 2)
    ]


def _difference(mean: float, drawn: Any, num_samples: int) -> Difference:
    """The difference with the 95 % percentile interval and the two-sided p of what the bootstrap has drawn."""
    drawn = drawn[~np.isnan(drawn)]
    if num_samples == 1 or math.isnan(mean) or not len(drawn):
        return Difference(mean, math.nan, math.nan, math.nan)
    low, high = np.quantile(drawn, [0.025, 0.975])
    tail = 1 + min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Difference(mean, float(low), float(high), min(1.0, 2 * float(tail) / (len(drawn) + 1)))


def mcnemar(worse: int, better: int) -> float:
    """McNemar's exact test: how probable so uneven a split of the flips is, were both directions as likely.

    >>> round(mcnemar(1, 9), 4)
    0.0215

    Args:
        worse: prompts that A answers correctly and B does not.
        better: prompts that B answers correctly and A does not.

    Returns:
        The two-sided p of the binomial test with probability 1/2; 1 where nothing flips.
    """
    flips = worse + better
    k = torch.arange(min(worse, better) + 1, dtype=torch.float64)
    whole = torch.tensor(flips, dtype=torch.float64)
    log_tail = torch.lgamma(whole + 1) - torch.lgamma(k + 1) - torch.lgamma(whole - k + 1) - whole * math.log(2)
    return min(1.0, 2 * float(log_tail.logsumexp(0).exp()))
