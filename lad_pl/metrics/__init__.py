"""Accuracy and position bias of a set of choices: plain functions on counts, and torchmetrics of the same.

Every sample is shown under T permutations. A choice is a position; the image that stands there is found through the
permutation. All statistics are sums of counts, so parts and processes add up exactly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lad_pl.metrics.counts import (
    METRICS,
    UNREADABLE,
    Counts,
    accuracy_per_permutation,
    count,
    finite,
    nanstd,
    recall_by_position,
    recall_std,
    same_image,
)

if TYPE_CHECKING:
    from lad_pl.metrics.permutation_metrics import (
        CircularAccuracy,
        Consistency,
        PermutationAccuracy,
        PermutationAccuracyStd,
        PermutationMetric,
        PositionConfusion,
        PositionRecall,
        RecallStd,
        SuccessRate,
        position_metrics,
    )

__all__ = [
    "METRICS",
    "UNREADABLE",
    "CircularAccuracy",
    "Consistency",
    "Counts",
    "PermutationAccuracy",
    "PermutationAccuracyStd",
    "PermutationMetric",
    "PositionConfusion",
    "PositionRecall",
    "RecallStd",
    "SuccessRate",
    "accuracy_per_permutation",
    "count",
    "finite",
    "nanstd",
    "position_metrics",
    "recall_by_position",
    "recall_std",
    "same_image",
]


def __getattr__(name: str) -> Any:
    """The torchmetrics, when they are first used: torchmetrics itself imports transformers and matplotlib."""
    if name in __all__:
        return getattr(import_module("lad_pl.metrics.permutation_metrics"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
