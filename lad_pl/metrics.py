"""How good and how position-biased a set of choices is.

Every sample is shown under T permutations. A choice is a position; the image that stands there is found through the
permutation. All statistics are sums of counts, so processes add up exactly. The metrics share one state: put together
in a ``torchmetrics.MetricCollection`` they are updated once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

UNREADABLE = -1
"""The choice of a prompt whose answer in words names no candidate."""


def accuracy_per_permutation(correct: Tensor, num_samples: Tensor) -> Tensor:
    """(T,) share of samples answered right under each permutation, from ``correct`` (T,) counts."""
    return correct.cpu().double() / num_samples.cpu()


def recall_by_position(confusion: Tensor, unreadable: Tensor | int = 0) -> Tensor:
    """(N,) share of prompts answered right among those with the truth at each position; NaN where there is none.

    Args:
        confusion: (N, N) counts, row = true position, column = chosen position.
        unreadable: (N,) counts by true position of the prompts whose answer names no candidate.
    """
    return confusion.diagonal().cpu().double() / (confusion.sum(1) + unreadable).cpu()


def recall_std(confusion: Tensor, unreadable: Tensor | int = 0) -> Tensor:
    """RStd: standard deviation (ddof 1) of :func:`recall_by_position` over the positions that held the truth.

    >>> recall_std(torch.tensor([[4, 0], [2, 2]]))
    tensor(0.3536, dtype=torch.float64)
    """
    recall = recall_by_position(confusion, unreadable)
    return _std(recall[~recall.isnan()])


def same_image(choices: Tensor, permutations: Tensor) -> Tensor:
    """(G,) whether every permutation of a sample led to the same image.

    Args:
        choices: (G, T) chosen positions; a sample with an :data:`UNREADABLE` one is not consistent.
        permutations: (G, T, N) original index of the image at each position.

    >>> same_image(torch.tensor([[0, 1], [0, 0]]), torch.tensor([[[0, 1], [1, 0]], [[0, 1], [1, 0]]]))
    tensor([ True, False])
    """
    images = permutations.gather(2, choices.clamp_min(0)[:, :, None]).squeeze(2)
    return ((choices != UNREADABLE) & (images == images[:, :1])).all(1)


def _std(values: Tensor) -> Tensor:
    """Standard deviation with ddof 1; NaN, not a warning, for fewer than two values."""
    return values.std(correction=1) if len(values) > 1 else values.new_tensor(torch.nan)


class PermutationMetric(Metric):
    """Shared state of the metrics below.

    Args:
        num_candidates: N.
        num_permutations: T.
    """

    full_state_update = False
    confusion: Tensor
    unreadable: Tensor
    correct: Tensor
    consistent: Tensor
    always_correct: Tensor
    num_samples: Tensor

    def __init__(self, num_candidates: int, num_permutations: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        shapes: dict[str, tuple[int, ...]] = {
            "confusion": (num_candidates, num_candidates),
            "unreadable": (num_candidates,),
            "correct": (num_permutations,),
            "consistent": (),
            "always_correct": (),
            "num_samples": (),
        }
        for name, shape in shapes.items():
            self.add_state(name, default=torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, choices: Tensor, targets: Tensor, permutations: Tensor) -> None:
        """Count the prompts of whole samples.

        Args:
            choices: (G, T) chosen position of G samples under T permutations; :data:`UNREADABLE` is wrong, and no
                image.
            targets: (G, T) position of the right image.
            permutations: (G, T, N) original index of the image at each position.
        """
        right = choices == targets
        readable = choices != UNREADABLE
        self._count(self.confusion, targets[readable], choices[readable])
        self._count(self.unreadable, targets[~readable])
        self.correct += right.sum(0)
        self.consistent += same_image(choices, permutations).sum()
        self.always_correct += right.all(1).sum()
        self.num_samples += len(choices)

    @staticmethod
    def _count(counts: Tensor, *places: Tensor) -> None:
        counts.index_put_(places, torch.ones_like(places[0], dtype=counts.dtype), accumulate=True)


class PermutationAccuracy(PermutationMetric):
    """Mean over the T permutations of the share answered right: a number in [0, 1]."""

    def compute(self) -> Tensor:
        """Scalar."""
        return accuracy_per_permutation(self.correct, self.num_samples).mean()


class PermutationAccuracyStd(PermutationMetric):
    """Standard deviation (ddof 1) of the accuracy over the T permutations; NaN for T = 1."""

    def compute(self) -> Tensor:
        """Scalar."""
        return _std(accuracy_per_permutation(self.correct, self.num_samples))


class RecallStd(PermutationMetric):
    """RStd: standard deviation (ddof 1) over positions of the recall there, all permutations pooled."""

    def compute(self) -> Tensor:
        """Scalar."""
        return recall_std(self.confusion, self.unreadable)


class Consistency(PermutationMetric):
    """Share of samples for which all T permutations choose the same image."""

    def compute(self) -> Tensor:
        """Scalar."""
        return self.consistent.cpu().double() / self.num_samples.cpu()


class CircularAccuracy(PermutationMetric):
    """Share of samples answered right under every permutation."""

    def compute(self) -> Tensor:
        """Scalar."""
        return self.always_correct.cpu().double() / self.num_samples.cpu()


class SuccessRate(PermutationMetric):
    """Share of prompts whose answer names a candidate; 1 for whatever scores the candidates."""

    def compute(self) -> Tensor:
        """Scalar."""
        prompts = self.num_samples.cpu() * len(self.correct)
        return 1 - self.unreadable.sum().cpu().double() / prompts


class PositionRecall(PermutationMetric):
    """Recall at each true position, all permutations pooled."""

    def compute(self) -> Tensor:
        """(N,)."""
        return recall_by_position(self.confusion, self.unreadable)


class PositionConfusion(PermutationMetric):
    """Counts of true position (row) by chosen position (column), of the prompts whose answer names a candidate."""

    def compute(self) -> Tensor:
        """(N, N), integers."""
        return self.confusion


def position_metrics(num_candidates: int, num_permutations: int, **kwargs: Any) -> MetricCollection:
    """All of the above under the names of ``metrics.json``; ``kwargs`` go to each of them."""
    kinds: dict[str, type[PermutationMetric]] = {
        "accuracy": PermutationAccuracy,
        "accuracy_std": PermutationAccuracyStd,
        "rstd": RecallStd,
        "consistency": Consistency,
        "circular_accuracy": CircularAccuracy,
        "success_rate": SuccessRate,
        "recall_by_position": PositionRecall,
        "confusion": PositionConfusion,
    }
    # The groups are named: left to itself the collection finds them by comparing states after a first update, which a
    # process without a sample never makes.
    return MetricCollection(
        {name: kind(num_candidates, num_permutations, **kwargs) for name, kind in kinds.items()},
        compute_groups=[list(kinds)],
    )
