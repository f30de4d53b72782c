"""Which samples share a batch, what a batch is made of, and each process's share of the batches."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch.utils.data import Dataset, DistributedSampler

from lad_pl.data.permutations import Permutation
from lad_pl.errors import UserError
from lad_pl.types import PermutedSample, Sample

EMPTY = -1
"""Index of the batch without a sample."""

LoadImage = Callable[[str], Any]
Size = tuple[int, int]


@dataclass(frozen=True)
class LoaderSpec:
    """What one method needs of its dataloader."""

    orders: tuple[Permutation, ...]
    """The orders in which every sample is shown."""
    encode: Callable[[list[PermutedSample]], Any] = list
    """Turns a batch of samples into model inputs, in the data workers."""
    lengths: Callable[[Sample, Sequence[Size]], int] | None = None
    """Tokens of a sample's prompt, from the sizes in pixels of its images as the processor is given them."""
    done: frozenset[int] = frozenset()
    """Indices of the samples to leave out, because their evidence is stored."""
    replica: tuple[int, int] = (1, 0)
    """Number of model replicas, and which of them this process holds."""
    image_size: int | None = None
    """Side in pixels to which images are resized; None leaves them as they are."""


def plan_batches(lengths: Sequence[int], prompts_per_sample: int, size: int | None, tokens: int) -> list[list[int]]:
    """Group samples into batches, longest first, so that out-of-memory shows at once and little is padding.

    Args:
        lengths: tokens of each sample's prompts, as far as they are known.
        prompts_per_sample: how many orders each sample is shown in.
        size: samples per batch; None fills batches up to ``tokens``.
        tokens: the most tokens of a batch, padding included; a single sample may have more.

    Returns:
        Indices of the samples of each batch.

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
    """Whether a batch has room for one more sample, which is no longer than its first."""
    if size is not None:
        return len(batch) < size
    return (len(batch) + 1) * prompts * lengths[batch[0]] <= tokens


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
        return [] if number == EMPTY else [self._decoded(index) for index in self.batches[number]]

    def _decoded(self, index: int) -> PermutedSample:
        sample = self.samples[index]
        try:
            images = tuple(self.load_image(name) for name in sample.images)
        except UserError as error:
            raise UserError(f"Sample {sample.id}: {error}; fix or remove it.") from error
        return PermutedSample(sample, index, self.permutations, images)


class ReplicaSampler(DistributedSampler[list[PermutedSample]]):
    """Every ``num_replicas``-th batch, filled up with an empty batch where the shares would differ.

    torch's own sampler fills up with items that are then counted twice. Shares must be equal because Lightning's
    loops, and DDP, expect every process to take the same number of steps.
    """

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        count = len(self.dataset)  # type: ignore[arg-type]
        numbers = range(self.rank, self.num_replicas * len(self), self.num_replicas)
        return iter(number if number < count else EMPTY for number in numbers)

    def __len__(self) -> int:
        return max(1, math.ceil(len(self.dataset) / self.num_replicas))  # type: ignore[arg-type]


class EncodeUnlessEmpty:
    """Encodes a batch of samples, in the data workers; an empty batch becomes an empty list.

    Args:
        encode: of :class:`LoaderSpec`.
    """

    def __init__(self, encode: Callable[[list[PermutedSample]], Any]) -> None:
        self.encode = encode

    def __call__(self, items: list[PermutedSample]) -> Any:
        """Encode one batch."""
        return self.encode(items) if items else []


def quiet_when_stopped(worker: int) -> None:
    """Keep a data worker from printing that the main process, once it is stopped, no longer takes its batches.

    The thread that hands tensors over reports it as an uncaught exception; the main process says itself that it was
    stopped.
    """
    report = sys.excepthook

    def report_others(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            report(kind, error, trace)

    sys.excepthook = report_others
