"""The metrics of many settings' choices on the same prompts, counted together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lad_pl.evidence.table import Prompts
from lad_pl.metrics import accuracy_per_permutation, recall_std

METRICS = ("accuracy", "accuracy_std", "rstd", "consistency", "circular_accuracy")
Scores = dict[str, float | None]
"""Metric by name, between 0 and 1; None where it is undefined."""
_SETTINGS_AT_A_TIME = 128


@dataclass(frozen=True)
class Counts:
    """The sums of :class:`lad_pl.metrics.PermutationMetric`, of S settings."""

    confusion: Tensor
    """(S, N, N): true position by chosen position."""
    correct: Tensor
    """(S, T): samples answered right under each permutation."""
    consistent: Tensor
    """(S,): samples for which every permutation chooses the same image."""
    always_right: Tensor
    """(S,): samples answered right under every permutation."""


def score(choices: Tensor, prompts: Prompts) -> list[Scores]:
    """The metrics of every setting.

    Args:
        choices: (S, P) positions.
        prompts: the P prompts, the T permutations of a sample one after the other.
    """
    return [scores for part in choices.split(_SETTINGS_AT_A_TIME) for scores in _scores(part, prompts)]


def _scores(choices: Tensor, prompts: Prompts) -> Iterator[Scores]:
    counts = count(choices.long(), prompts)
    num_samples = torch.tensor(len(prompts) // prompts.num_permutations)
    for number, correct in enumerate(counts.correct):
        accuracies = accuracy_per_permutation(correct, num_samples)
        values = {
            "accuracy": accuracies.mean(),
            "accuracy_std": accuracies.std(correction=1) if len(accuracies) > 1 else math.nan,
            "rstd": recall_std(counts.confusion[number]),
            "consistency": counts.consistent[number].double() / num_samples,
            "circular_accuracy": counts.always_right[number].double() / num_samples,
        }
        yield {name: _finite(float(values[name])) for name in METRICS}


def count(choices: Tensor, prompts: Prompts) -> Counts:
    """Count what S settings chose; ``choices`` (S, P) positions."""
    n, num_prompts = prompts.num_candidates, len(prompts)
    by_sample = (len(choices), -1, prompts.num_permutations)
    right = (choices == prompts.targets).view(by_sample)
    images = prompts.permutations.flatten()[torch.arange(num_prompts) * n + choices].view(by_sample)
    cells = torch.arange(len(choices))[:, None] * n * n + prompts.targets * n + choices
    return Counts(
        confusion=torch.bincount(cells.flatten(), minlength=len(choices) * n * n).view(-1, n, n),
        correct=right.sum(1),
        consistent=(images == images[..., :1]).all(2).sum(1),
        always_right=right.all(2).sum(1),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
