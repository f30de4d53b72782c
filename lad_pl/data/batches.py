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


def plan_batches(lengths: Sequence[int], prompts_per_sample: int, size: int | None, tokens: int) -> list[list[int]]:
    """Lay samples out in batches, the longest first: what does not fit into memory shows at once.

    Args:
        lengths: tokens of each sample's prompts, as far as they are known.
        prompts_per_sample: how many orders each sample is shown in.
        size: samples per batch; None fills batches up to ``tokens``.
        tokens: the most tokens of a batch, padding included; a single sample may have more.

    >>> plan_batches([10, 30, 20, 30], prompts_per_sample=2, size=2, tokens=0)
    [[1, 3], [2, 0]]
    >>> plan_batches([10, 30, 20, 30], prompts_per_sample=2, size=None, tokens=120)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda sample: -lengths[sample])  # stable: else the samples' own order
    batches: list[list[int]] = []
    for sample in order:
        if batches and _fits(batches[-1], lengths, prompts_per_sample, size, tokens):
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


def _fits(batch: list[int], lengths: Sequence[int], prompts: int, size: int | None, tokens: int) -> bool:
    """Whether one more sample, no longer than the first, may travel with a batch."""
    if size is not None:
        return len(batch) < size
    return (len(batch) + 1) * prompts * lengths[batch[0]] <= tokens
