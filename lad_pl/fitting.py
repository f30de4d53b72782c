"""As many prompts at a time as memory holds."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lightning.pytorch.utilities import rank_zero_warn

from lad_pl.errors import UserError
from lad_pl.passes.base import Measured, plain_batch
from lad_pl.types import Batch, Evidence


class Fitting:
    """Cuts a batch in halves when memory runs out, says so, and remembers what fits.

    Args:
        tokens: the most tokens, padding included, that are tried at a time; None for no limit of our own.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens
        self.prompts: int | None = None
        """The most prompts that have been found to fit; None while all did."""

    def __call__(self, measure: Callable[[Any], Measured], batch: Any) -> Measured:
        """Measure the prompts of a batch, in parts if they do not fit.

        Args:
            measure: what is to be done with a batch or a part of it.
            batch: a Batch whose images the vision tower has seen, or several that go side by side.

        Raises:
            UserError: a single prompt does not fit.
        """
        length = len(plain_batch(batch))
        parts: list[Measured] = []
        start = 0
        while start < length:
            stop = min(length, start + self._at_a_time(batch))
            part = measured_or_none(measure, _part(batch, start, stop, length))
            if part is None:
                self._halve(stop - start)
            else:
                parts.append(part)
                start = stop
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _at_a_time(self, batch: Any) -> int:
        plain = plain_batch(batch)
        known = [len(plain)] if self.prompts is None else [self.prompts]
        if self.tokens is not None:
            known.append(max(1, self.tokens // plain.tokens["input_ids"].shape[1]))
        return min(known)

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise UserError(
                "Not even one prompt fits into memory; show fewer or smaller images (model.prompt.image_size), load "
                "the weights in half precision (model.vlm.dtype) or spread the model (model.vlm.device_map auto)."
            )
        self.prompts = (tried + 1) // 2
        rank_zero_warn(f"Out of memory with {tried} prompts at a time; going on with {self.prompts}.")
        gc.collect()
        clear_device_cache()


def measured_or_none(measure: Callable[[Any], Measured], batch: Any) -> Measured | None:
    """What ``measure`` makes of a batch, or None if memory ran out."""
    try:
        return measure(batch)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error):
            return None
        raise


def _part(batch: Any, start: int, stop: int, length: int) -> Any:
    if (start, stop) == (0, length):
        return batch
    if isinstance(batch, Batch):
        return batch.part(start, stop)
    return tuple(member.part(start, stop) for member in batch)


def _joined(parts: list[Measured]) -> Measured:
    free = [part.free for part in parts if part.free is not None]
    texts = [text for part in parts for text in part.texts or ()]
    return Measured(
        Evidence.cat([part.evidence for part in parts]),
        Evidence.cat(free) if free else None,
        tuple(texts) if texts else None,
    )
