"""Counts of choices, and the metrics as functions of them; leading axes ``...`` hold the settings that are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNREADABLE = -1
"""The choice of a prompt whose generated text names no candidate."""


@dataclass(frozen=True)
class Counts:
    """Sums over samples and permutations: the counts of two parts add up to those of both."""

    confusion: Tensor
    """(..., N, N) prompts by true position (row) and chosen position (column)."""
    unreadable: Tensor
    """(..., N) prompts by true position whose answer names no candidate."""
    correct: Tensor
    """(..., T) samples answered correctly under each permutation."""
    consistent: Tensor
    """(...,) samples for which every permutation led to the same image."""
    always_correct: Tensor
    """(...,) samples answered correctly under every permutation."""
    num_samples: Tensor
    """Scalar: all samples."""


def count(choices: Tensor, targets: Tensor, permutations: Tensor) -> Counts:
    """Count the choices of G samples under T permutations each.

    Args:
        choices: (..., G, T) chosen positions; :data:`UNREADABLE` is wrong, and no image.
        targets: (G, T) position of the correct image.
        permutations: (G, T, N) original index of the image at each position.
    """
    n, settings = permutations.shape[-1], choices.shape[:-2]
    num_settings = math.prod(settings)
    # Column 0 counts the unreadable ones, column j + 1 those that chose position j.
    cells = ((targets * (n + 1) - UNREADABLE) + choices).reshape(num_settings, -1)
    cells = cells + n * (n + 1) * torch.arange(num_settings, device=cells.device)[:, None]
    table = torch.bincount(cells.flatten(), minlength=num_settings * n * (n + 1)).view(*settings, n, n + 1)
    correct = choices == targets
    return Counts(
        confusion=table[..., 1:],
        unreadable=table[..., 0],
        correct=correct.sum(-2),
        consistent=same_image(choices, permutations).sum(-1),
        always_correct=correct.all(-1).sum(-1),
        num_samples=torch.tensor(len(targets), device=targets.device),
    )


def same_image(choices: Tensor, permutations: Tensor) -> Tensor:
    """(..., G) whether every permutation of a sample led to the same image.

    Args:
        choices: (..., G, T) chosen positions; a sample with an :data:`UNREADABLE` one is not consistent.
        permutations: (G, T, N) original index of the image at each position.

    >>> same_image(torch.tensor([[0, 1], [0, 0]]), torch.tensor([[[0, 1], [1, 0]], [[0, 1], [1, 0]]]))
    tensor([ True, False])
    """
    first = torch.arange(permutations[..., 0].numel(), device=choices.device) * permutations.shape[-1]
    images = permutations.flatten()[first.view(permutations.shape[:2]) + choices.clamp_min(0)]
    return ((choices != UNREADABLE) & (images == images[..., :1])).all(-1)


def accuracy_per_permutation(correct: Tensor, num_samples: Tensor) -> Tensor:
    """(..., T) share of samples answered correctly under each permutation, from ``correct`` (..., T) counts."""
    return correct.cpu().double() / num_samples.cpu()


def recall_by_position(confusion: Tensor, unreadable: Tensor | int = 0) -> Tensor:
    """(..., N) share of correct answers among the prompts with the truth at each position; NaN where there is none.

    Args:
        confusion: (..., N, N) counts, row = true position, column = chosen position.
        unreadable: (..., N) counts by true position of the prompts whose answer names no candidate.
    """
    return confusion.diagonal(dim1=-2, dim2=-1).cpu().double() / (confusion.sum(-1) + unreadable).cpu()


def recall_std(confusion: Tensor, unreadable: Tensor | int = 0) -> Tensor:
    """RStd, (...,): standard deviation (ddof 1) of :func:`recall_by_position` over the positions that held the truth.

    >>> recall_std(torch.tensor([[4, 0], [2, 2]]))
    tensor(0.3536, dtype=torch.float64)
    """
    return nanstd(recall_by_position(confusion, unreadable))


def nanstd(values: Tensor) -> Tensor:
    """Standard deviation (ddof 1) over the last axis, leaving out NaN; NaN for fewer than two values."""
    known = ~values.isnan()
    number = known.sum(-1)
    mean = values.nan_to_num().sum(-1) / number
    squares = ((values.nan_to_num() - mean[..., None]) * known).square().sum(-1)
    return (squares / (number - 1)).sqrt().masked_fill(number < 2, torch.nan)


def _accuracy(counts: Counts) -> Tensor:
    return accuracy_per_permutation(counts.correct, counts.num_samples).mean(-1)


def _accuracy_std(counts: Counts) -> Tensor:
    return nanstd(accuracy_per_permutation(counts.correct, counts.num_samples))


def _success_rate(counts: Counts) -> Tensor:
    prompts = counts.num_samples.cpu() * counts.correct.shape[-1]
    return 1 - counts.unreadable.sum(-1).cpu().double() / prompts


METRICS: dict[str, Callable[[Counts], Tensor]] = {
    "accuracy": _accuracy,
    "accuracy_std": _accuracy_std,
    "rstd": lambda counts: recall_std(counts.confusion, counts.unreadable),
    "consistency": lambda counts: counts.consistent.cpu().double() / counts.num_samples.cpu(),
    "circular_accuracy": lambda counts: counts.always_correct.cpu().double() / counts.num_samples.cpu(),
    "success_rate": _success_rate,
    "recall_by_position": lambda counts: recall_by_position(counts.confusion, counts.unreadable),
    "confusion": lambda counts: counts.confusion,
}
"""Every metric under its name in ``metrics.json``: (...,) shares in [0, 1], (..., N) recall, (..., N, N) confusion."""


def finite(value: Any) -> Any:
    """A number, or lists of numbers, with None for what is undefined (NaN), as JSON and CSV have it.

    >>> finite([0.5, [math.nan]])
    [0.5, [None]]
    """
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value if math.isfinite(value) else None
