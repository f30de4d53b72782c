"""Batches of samples with the permutations under which they are shown, and each process's share of the batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, DistributedSampler

from lad_pl.data.permutations import Permutation
from lad_pl.errors import UserError
from lad_pl.types import PermutedSample, Sample

NOTHING = -1
"""Index of the batch that holds no sample."""

LoadImage = Callable[[str], Any]


class SampleBatches(Dataset[list[PermutedSample]]):
    """Every item is a batch of samples with all of their permutations; each image of a sample is decoded once.

    Args:
        samples: of equal N.
        batches: indices of the samples of each batch.
        permutations: the orders in which every sample is shown.
        load_image: from an image name to a decoded image.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        batches: Sequence[Sequence[int]],
        permutations: tuple[Permutation, ...],
        load_image: LoadImage,
    ) -> None:
        self.samples = samples
        self.batches = batches
        self.permutations = permutations
        self.load_image = load_image

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[PermutedSample]:
        return [] if number == NOTHING else [self._decoded(index) for index in self.batches[number]]

    def _decoded(self, index: int) -> PermutedSample:
        sample = self.samples[index]
        try:
            images = tuple(self.load_image(name) for name in sample.images)
        except UserError as error:
            raise UserError(f"Sample {sample.id}: {error}; mend or remove it.") from error
        return PermutedSample(sample, index, self.permutations, images)


class Shard(DistributedSampler[list[PermutedSample]]):
    """Every ``num_replicas``-th batch; where the shares would differ, one with nothing in it.

    torch's own sampler fills up with items that are then counted twice. Shares must be equal because Lightning's
    loops, and DDP, expect every process to take the same number of steps.
    """

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        last = len(self.dataset)  # type: ignore[arg-type]
        places = range(self.rank, self.num_replicas * len(self), self.num_replicas)
        return iter(place if place < last else NOTHING for place in places)

    def __len__(self) -> int:
        return max(1, math.ceil(len(self.dataset) / self.num_replicas))  # type: ignore[arg-type]
