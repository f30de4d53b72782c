"""Permutation averaging: the same prompt in several orders of its images, log-probabilities averaged by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lad_pl.data.permutations import Permutation, cyclic_shifts, random_permutations
from lad_pl.errors import UserError
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.methods.base import Method, method
from lad_pl.readouts import ReadoutSettings


@method
class PermutationAverage(Method):
    """Each tested prompt in all of its cyclic shifts; log-probabilities averaged by image."""

    name = "permutation_average"

    def further_orders(self, num_candidates: int) -> tuple[Permutation, ...]:
        """The K orders, the unchanged one first, in which a prompt is shown."""
        return cyclic_shifts(num_candidates)

    def orders(self, permutations: Sequence[Permutation]) -> tuple[Permutation, ...]:
        """K orders for each of the T permutations, one after the other."""
        further = self.further_orders(len(permutations[0]))
        return tuple(tuple(order[index] for index in change) for order in permutations for change in further)

    def scores(self, records: EvidenceRecords, num_permutations: int, readout: ReadoutSettings) -> dict[str, Tensor]:
        """Mean over the K orders of each image's log-probability, at its position in the tested prompt."""
        orders = records.num_permutations // num_permutations
        averaged = averaged_by_image(records.evidence.log_probs, records.permutations, orders)
        return dict.fromkeys(self.names, averaged)


@method
class RandomPermutationAverage(PermutationAverage):
    """Each tested prompt in a few random orders."""

    name = "permutation_average_random"

    def further_orders(self, num_candidates: int) -> tuple[Permutation, ...]:
        """The unchanged order and random ones."""
        count = self.settings.averaged_orders
        if count > math.factorial(num_candidates):
            raise UserError(
                f"model.method.averaged_orders is {count}, but {num_candidates} images have only "
                f"{math.factorial(num_candidates)} orders; lower it."
            )
        return random_permutations(num_candidates, count, self.settings.seed)

    def recorded_settings(self) -> dict[str, Any]:
        """Number and seed of the orders."""
        return {"averaged_orders": self.settings.averaged_orders, "seed": self.settings.seed}


def averaged_by_image(log_probs: Tensor, permutations: Tensor, orders: int) -> Tensor:
    """Average log-probabilities by image.

    Args:
        log_probs: (P K, N) of P prompts in K orders each, these one after the other.
        permutations: (P K, N) original index of the image at each position.
        orders: K.

    Returns:
        (P, N): by position in the first of a prompt's K orders.
    """
    by_image = torch.zeros_like(log_probs).scatter(1, permutations, log_probs)
    means = by_image.view(-1, orders, log_probs.shape[1]).mean(1)
    return means.gather(1, permutations[::orders])
