"""Samples with the permutations under which they are shown, and their share per process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, DistributedSampler

from lad_pl.errors import UserError
from lad_pl.permute import Permutation
from lad_pl.types import PermutedSample, Sample

STAND_IN = -1
"""Index of a sample that is computed but not counted."""

LoadImage = Callable[[str], Any]


class PermutedSamples(Dataset[PermutedSample]):
    """Every item is one sample with all of its permutations; each image is decoded once.

    Args:
        samples: of equal N.
        permutations: the orders in which every sample is shown.
        load_image: from an image name to a decoded image.
    """

    def __init__(self, samples: Sequence[Sample], permutations: tuple[Permutation, ...], load_image: LoadImage) -> None:
        self.samples = samples
        self.permutations = permutations
        self.load_image = load_image

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> PermutedSample:
        stand_in = index == STAND_IN
        sample = self.samples[0 if stand_in else index]
        try:
            images = tuple(self.load_image(name) for name in sample.images)
        except UserError as error:
            raise UserError(f"Sample {sample.id}: {error}; mend or remove it.") from error
        return PermutedSample(sample, index, self.permutations, images)


class Shard(DistributedSampler[PermutedSample]):
    """Every ``num_replicas``-th sample; where the shares would differ, a stand-in that is not counted.

    torch's own sampler fills up with samples that are then counted twice. Shares must be equal because Lightning's
    loops, and DDP, expect every process to take the same number of steps.
    """

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        last = len(self.dataset)  # type: ignore[arg-type]
        places = range(self.rank, self.num_replicas * len(self), self.num_replicas)
        return iter(place if place < last else STAND_IN for place in places)

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.num_replicas)  # type: ignore[arg-type]
