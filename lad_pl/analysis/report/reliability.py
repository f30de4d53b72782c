"""Whether a probability means what it says: how often the answer is right when the model is so sure of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reliability:
    """The calibration curve of one method."""

    confidence: Tensor
    """(M,) mean probability of the chosen answer in each of the M bins that have prompts."""
    accuracy: Tensor
    """(M,) share of those answers that are right."""
    share: Tensor
    """(M,) share of all prompts that are in the bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean over the prompts of |accuracy - confidence| of their bin."""
        return float((self.share * (self.accuracy - self.confidence).abs()).sum())


def reliability(log_probs: Tensor, targets: Tensor, num_bins: int = 10) -> Reliability:
    """Calibration curve (Guo et al. 2017) of the most probable answers.

    Args:
        log_probs: (P, N) log-probabilities; each row's probabilities sum to 1.
        targets: (P,) position of the right image.
        num_bins: of equal width between 0 and 1.
    """
    confidence, choices = log_probs.exp().max(-1)
    bins = (confidence * num_bins).long().clamp_max(num_bins - 1)
    counts = torch.bincount(bins, minlength=num_bins)
    filled = counts > 0

    def mean(values: Tensor) -> Tensor:
        sums = torch.bincount(bins, weights=values, minlength=num_bins)
        return sums[filled] / counts[filled]

    return Reliability(mean(confidence), mean((choices == targets).double()), counts[filled] / len(targets))
