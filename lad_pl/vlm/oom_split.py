"""As many prompts at a time as memory holds."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from lad_pl.errors import UserError
from lad_pl.methods.base import MethodOutput, plain_batch
from lad_pl.types import Batch, Evidence

_REMEDY = (
    "show fewer or smaller images (model.prompt.image_size), load the weights in half precision (model.vlm.dtype) or "
    "spread the model (model.vlm.device_map auto)."
)


_ALSO_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How libraries below torch say so."""


class OomSplitter:
    """Cuts a batch in halves when memory runs out, says so, and remembers what fits.

    Args:
        tokens: the most tokens, padding included, that are tried at a time; None for no limit as long as all fit.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens
        self.samples: float = math.inf
        """The most samples whose images are tried at a time."""

    def __call__(self, see: Callable[[Any], Any], measure: Callable[[Any], MethodOutput], batch: Any) -> MethodOutput:
        """Measure the prompts of a batch, in parts if they do not fit.

        Args:
            see: lets the vision tower see the images of a batch; the prompts of a sample share them.
            measure: what is then to be done with the batch or a part of it.
            batch: a Batch, or several that go side by side.

        Raises:
            UserError: one sample's images, or a single prompt, do not fit.
        """
        samples = len(plain_batch(batch).vision)
        middle = (samples + 1) // 2
        if samples <= self.samples:
            seen = none_if_out_of_memory(see, batch)
            if seen is not None:
                return self._measured(measure, seen)
            if samples == 1:
                raise UserError(f"Not even one sample's images fit into memory; {_REMEDY}")
            self.samples = middle
            _clear(f"Out of memory with the images of {samples} samples at a time; going on with half of them.")
        halves = (_each(batch, Batch.samples, *ends) for ends in ((0, middle), (middle, samples)))
        return _joined([self(see, measure, half) for half in halves])

    def _measured(self, measure: Callable[[Any], MethodOutput], batch: Any) -> MethodOutput:
        length, width = plain_batch(batch).tokens["input_ids"].shape
        parts: list[MethodOutput] = []
        start = 0
        while start < length:
            stop = start + self._at_a_time(length - start, width)
            part = none_if_out_of_memory(
                measure, _each(batch, Batch.part, start, stop) if stop - start < length else batch
            )
            if part is None:
                self._halve(stop - start, width)
            else:
                parts.append(part)
                start = stop
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _at_a_time(self, waiting: int, width: int) -> int:
        """How many of the waiting prompts go next: equal shares within the limit."""
        most = waiting if self.tokens is None else max(1, self.tokens // width)
        return math.ceil(waiting / math.ceil(waiting / most))

    def _halve(self, tried: int, width: int) -> None:
        if tried == 1:
            raise UserError(f"Not even one prompt fits into memory; {_REMEDY}")
        half = (tried + 1) // 2
        self.tokens = half * width
        _clear(f"Out of memory with {tried} prompts at a time; going on with {half} of this length.")


def none_if_out_of_memory(work: Callable[[Any], Any], batch: Any) -> Any:
    """What ``work`` makes of a batch, or None if memory ran out."""
    try:
        return work(batch)
    except (RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            return None
        raise


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    return any(words in str(error) for words in _ALSO_OUT_OF_MEMORY)


def _clear(message: str) -> None:
    warnings.warn(message, stacklevel=2)
    gc.collect()
    clear_device_cache()


def _each(batch: Any, method: Callable[[Batch, int, int], Batch], start: int, stop: int) -> Any:
    """A part of a batch, or of each of several that go side by side."""
    if isinstance(batch, Batch):
        return method(batch, start, stop)
    return tuple(method(member, start, stop) for member in batch)


def _joined(parts: list[MethodOutput]) -> MethodOutput:
    free = [part.free for part in parts if part.free is not None]
    texts = [text for part in parts for text in part.texts or ()]
    return MethodOutput(
        Evidence.cat([part.evidence for part in parts]),
        max(part.forwards for part in parts),
        Evidence.cat(free) if free else None,
        tuple(texts) if texts else None,
    )
