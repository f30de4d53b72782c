"""Logits, attention and confidence by the position of the correct image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lad_pl.metrics import UNREADABLE
from lad_pl.readouts import EPS, top_layer_masses


def mean_by_target(values: Tensor, targets: Tensor) -> Tensor:
    """(N, N) mean over the prompts with the correct image at position i of ``values`` at position j.

    Args:
        values: (P, N).
        targets: (P,) position of the correct image.

    Returns:
        Rows are positions of the correct image; a row is NaN where no prompt has it there.
    """
    at_target = torch.nn.functional.one_hot(targets, values.shape[1]).to(values.dtype)  # (P, N)
    return at_target.T @ values / at_target.sum(0)[:, None]


def log_odds(log_probs: Tensor) -> Tensor:
    """Log-probabilities (P, N) less their mean over the candidates, which a constant on all logits leaves alone."""
    return log_probs - log_probs.mean(-1, keepdim=True)


def attention_shares(layer_attention: Tensor, top_layers: int) -> Tensor:
    """(P, N) share of the attention on the images that each has, in the K layers with the largest mass (eq. 8-9).

    Args:
        layer_attention: (P, L, N) attention mass, mean over heads.
        top_layers: K.
    """
    (masses,) = top_layer_masses(layer_attention, top_layers)
    masses = masses.mean(1)
    return masses / masses.sum(-1, keepdim=True).clamp_min(EPS)


def layer_accuracy(layer_attention: Tensor, targets: Tensor, prior: Tensor | None = None) -> Tensor:
    """(L,) share of prompts in which a layer's attention is largest on the correct image.

    Args:
        layer_attention: (P, L, N) attention mass, mean over heads.
        targets: (P,) position of the correct image.
        prior: (L, N) attention prior (eq. 7) to divide by.
    """
    masses = layer_attention if prior is None else layer_attention / prior.clamp_min(EPS)
    return (masses.argmax(-1) == targets[:, None]).double().mean(0)


def confusion_shares(choices: Tensor, targets: Tensor, num_candidates: int) -> Tensor:
    """(N, N) share of the prompts with the correct image at position i in which position j is chosen; NaN without any.

    Rows sum to 1 less the share of answers that could not be read.
    """
    readable = choices != UNREADABLE
    chosen = torch.nn.functional.one_hot(choices.clamp_min(0), num_candidates).double() * readable[:, None]
    return mean_by_target(chosen, targets)


def found_when_wrong(correct: Tensor, attention_correct: Tensor) -> float:
    """Share, among the prompts answered wrong, of those in which attention is largest on the correct image.

    Args:
        correct: whether each prompt is answered correctly.
        attention_correct: whether attention is largest on the correct image, same shape.

    Returns:
        NaN where no prompt is answered wrong.
    """
    wrong = ~correct
    return float((attention_correct & wrong).sum().double() / wrong.sum())


@dataclass(frozen=True)
class Reliability:
    """The calibration curve of one method."""

    confidence: Tensor
    """(M,) mean probability of the chosen answer in each of the M bins that have prompts."""
    accuracy: Tensor
    """(M,) share of those answers that are correct."""
    share: Tensor
    """(M,) share of all prompts that are in the bin."""

    @property
    def mean_confidence(self) -> float:
        """Mean probability of the chosen answer over all prompts."""
        return float((self.share * self.confidence).sum())

    @property
    def mean_accuracy(self) -> float:
        """Share of correct answers among all prompts."""
        return float((self.share * self.accuracy).sum())

    @property
    def error(self) -> float:
        """Expected calibration error: mean over the prompts of |accuracy - confidence| of their bin."""
        return float((self.share * (self.accuracy - self.confidence).abs()).sum())


def reliability(log_probs: Tensor, targets: Tensor, num_bins: int = 10) -> Reliability:
    """Calibration curve (Guo et al. 2017) of the most probable answers.

    Args:
        log_probs: (P, N) log-probabilities; each row's probabilities sum to 1.
        targets: (P,) position of the correct image.
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
