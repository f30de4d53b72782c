"""Whether two sets of answers to the same prompts differ by more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How much more often one was right than the other, in [-1, 1]; NaN where one sample is all there is."""

    mean: float
    """Accuracy of the first less accuracy of the second, on the samples at hand."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    p: float
    """Two-sided: how probable a difference of at least this size is, were there none."""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    right_a: Tensor, right_b: Tensor, draws: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """Paired bootstrap over samples of the difference of two accuracies.

    A sample's T permutations ask one question T times, so they are drawn together (a cluster bootstrap). All that
    counts of a sample is d, how many of its T answers the first has right more than the second, and d has few values:
    resampling G samples with replacement is a multinomial draw of G over the histogram of d. The interval is the
    percentile interval; p is the smallest level at which it would leave out zero, 2 min(P(mean <= 0), P(mean >= 0)),
    at least 2 / (draws + 1) (Efron & Tibshirani 1993, 13.3 and 15.4).

    >>> import torch
    >>> paired_bootstrap(torch.ones(9, 5).bool(), torch.zeros(9, 5).bool(), draws=199)
    Difference(mean=1.0, low=1.0, high=1.0, p=0.01)

    Args:
        right_a: (G, T) whether the first has each prompt of G samples right.
        right_b: (G, T) the same for the second, prompt by prompt.
        draws: how many times the samples are drawn anew.
        seed: of the draws.
        confidence: of the interval.

    Raises:
        ValueError: the shapes differ, or there are no samples.
    """
    if right_a.shape != right_b.shape or right_a.ndim != 2 or not right_a.numel():
        raise ValueError(f"Two (G, T) tensors of one shape are compared, not {right_a.shape} and {right_b.shape}.")
    num_samples, num_permutations = right_a.shape
    surplus = right_a.long().sum(1) - right_b.long().sum(1)
    mean = float(surplus.double().mean()) / num_permutations
    if num_samples == 1:
        return Difference(mean, math.nan, math.nan, math.nan)
    values, counts = np.unique(surplus.cpu().numpy(), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(num_samples, counts / num_samples, size=draws)
    sums = drawn @ values  # whole numbers, so that a difference of zero is exactly zero
    tail = 1 + min((sums <= 0).sum(), (sums >= 0).sum())
    low, high = np.quantile(sums / (num_samples * num_permutations), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(mean, float(low), float(high), min(1.0, 2 * float(tail) / (draws + 1)))
