"""Halve a batch on out-of-memory and retry."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from lad_pl.errors import UserError
from lad_pl.types import Batch

T = TypeVar("T")
_REMEDY = (
    "show fewer or smaller images (model.prompt.image_size), load the weights in half precision (model.vlm.dtype) or "
    "spread the model (model.vlm.device_map auto)."
)
_ALSO_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Messages of libraries below torch."""


class OomSplitter:
    """Applies a function to a batch in parts that fit into memory, and remembers what fits.

    Args:
        cut: takes the items from ``start`` up to ``stop`` out of a batch: :meth:`Batch.part` or :meth:`Batch.samples`.
        items: the items in messages: "{} prompts", "the images of {} samples".
        one: a single item in messages: "one prompt fits".
        limit: the largest part to try, as items times their size; infinite if the first attempt is the whole batch.
        may_split: if False, out-of-memory is an error. Processes that share one model's weights have to stay in step.
    """

    def __init__(
        self,
        cut: Callable[[Batch, int, int], Batch],
        items: str,
        one: str,
        limit: float = math.inf,
        may_split: bool = True,
    ) -> None:
        self.limit = limit
        self._cut, self._items, self._one, self._may_split = cut, items, one, may_split

    def map(self, function: Callable[[Batch], T], batch: Batch, count: int, size: int = 1) -> Iterator[T]:
        """``function`` of each part of a batch, in order.

        Args:
            function: may run out of memory; its part is then halved and tried again.
            batch: of ``count`` items.
            count: number of items.
            size: of one item, in the unit of the limit.

        Raises:
            UserError: a single item does not fit, or the batch may not be split.
        """
        start = 0
        while start < count:
            stop = start + self._at_a_time(count - start, size)
            part = batch if stop - start == count else self._cut(batch, start, stop)
            try:
                result = function(part)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            else:
                yield result
                del result, part  # before the next part needs the memory
                start = stop
                continue
            self._halve(stop - start, size)  # outside the handler, whose traceback holds the tensors

    def _at_a_time(self, waiting: int, size: int) -> int:
        """How many of the waiting items come next: equal shares within the limit."""
        most = waiting if self.limit == math.inf else max(1, int(self.limit) // size)
        return math.ceil(waiting / math.ceil(waiting / most))

    def _halve(self, tried: int, size: int) -> None:
        if not self._may_split:
            raise UserError("Out of memory; make batches smaller (data.batch_size, data.batch_tokens).")
        if tried == 1:
            raise UserError(f"Not even {self._one} into memory; {_REMEDY}")
        half = (tried + 1) // 2
        self.limit = half * size
        warnings.warn(f"Out of memory with {self._items.format(tried)} at a time; going on with {half}.", stacklevel=3)
        gc.collect()
        clear_device_cache()


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    return any(words in str(error) for words in _ALSO_OUT_OF_MEMORY)
