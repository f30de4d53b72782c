"""Samples with the permutations under which they are shown, and their share per process."""

from __future__ import annotations

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
    """Every ``num_replicas``-th sample, none repeated and none dropped.

    torch's own sampler repeats samples until the shares are equal, which counts them twice. A process without a
    sample gets a stand-in: Lightning skips a loop without batches, and the others would wait for this process for ever.
    """

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(self._share())

    def __len__(self) -> int:
        return len(self._share())

    def _share(self) -> Sequence[int]:
        return range(self.rank, len(self.dataset), self.num_replicas) or [STAND_IN]  # type: ignore[arg-type]
