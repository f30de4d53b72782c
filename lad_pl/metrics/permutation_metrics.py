"""The metrics as torchmetrics, which add up over batches and processes.

They share one state: put together in a ``torchmetrics.MetricCollection`` they are updated once.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lad_pl.metrics.counts import METRICS, Counts, count


class PermutationMetric(Metric):
    """Shared state of the metrics below: :class:`~lad_pl.metrics.Counts`.

    Args:
        num_candidates: N.
        num_permutations: T.
    """

    full_state_update = False
    name: str
    """In ``metrics.json``."""

    def __init__(self, num_candidates: int, num_permutations: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(0, num_permutations, dtype=torch.long)
        none = count(zeros, zeros, torch.zeros(0, num_permutations, num_candidates, dtype=torch.long))
        for field in fields(Counts):
            self.add_state(field.name, default=getattr(none, field.name), dist_reduce_fx="sum")

    def update(self, choices: Tensor, targets: Tensor, permutations: Tensor) -> None:
        """Count the choices of G samples under T permutations each.

        Args:
            choices: (G, T) chosen position of G samples under T permutations; :data:`~lad_pl.metrics.UNREADABLE` is
                wrong, and no image.
            targets: (G, T) position of the correct image.
            permutations: (G, T, N) original index of the image at each position.
        """
        counts = count(choices, targets, permutations)
        for field in fields(Counts):
            getattr(self, field.name).add_(getattr(counts, field.name))

    def compute(self) -> Tensor:
        """The metric; its shape is in :data:`lad_pl.metrics.METRICS`."""
        return METRICS[self.name](Counts(**{field.name: getattr(self, field.name) for field in fields(Counts)}))


class PermutationAccuracy(PermutationMetric):
    """Mean over the T permutations of the share of correct answers: a number in [0, 1]."""

    name = "accuracy"


class PermutationAccuracyStd(PermutationMetric):
    """Standard deviation (ddof 1) of the accuracy over the T permutations; NaN for T = 1."""

    name = "accuracy_std"


class RecallStd(PermutationMetric):
    """RStd: standard deviation (ddof 1) over positions of the recall there, all permutations pooled."""

    name = "rstd"


class Consistency(PermutationMetric):
    """Share of samples for which all T permutations choose the same image."""

    name = "consistency"


class CircularAccuracy(PermutationMetric):
    """Share of samples answered correctly under every permutation."""

    name = "circular_accuracy"


class SuccessRate(PermutationMetric):
    """Share of prompts whose answer names a candidate; 1 for whatever scores the candidates."""

    name = "success_rate"


class PositionRecall(PermutationMetric):
    """Recall at each true position, (N,), all permutations pooled."""

    name = "recall_by_position"


class PositionConfusion(PermutationMetric):
    """(N, N) counts of true position (row) by chosen position (column), of the prompts whose answer names one."""

    name = "confusion"


def position_metrics(num_candidates: int, num_permutations: int, **kwargs: Any) -> MetricCollection:
    """All of the above under the names of ``metrics.json``; ``kwargs`` go to each of them."""
    kinds: tuple[type[PermutationMetric], ...] = (
        PermutationAccuracy,
        PermutationAccuracyStd,
        RecallStd,
        Consistency,
        CircularAccuracy,
        SuccessRate,
        PositionRecall,
        PositionConfusion,
    )
    # The groups are named: left to itself the collection finds them by comparing states after a first update, which a
    # process without a sample never makes.
    return MetricCollection(
        {kind.name: kind(num_candidates, num_permutations, **kwargs) for kind in kinds},
        compute_groups=[[kind.name for kind in kinds]],
    )
