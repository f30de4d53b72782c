"""Vision towers' attention within many short sequences, in few calls.

A tower that takes images of any size lays the patches of all images in a row and attends within sequences of it: within
images, or in most layers of Qwen2.5-VL within windows of 8 x 8 patches. Flash attention takes such a row in one call.
Under sdpa, transformers' towers call the attention function for one sequence after the other: for twelve images of
336 x 336 pixels 108 times in each of 28 layers, which keeps a GPU waiting. Here sequences of one length go through the
function as one batch, which computes the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lad_pl.errors import UserError
from lad_pl.vlm.attention import AttentionFunction, wrapped_attention

BACKEND = "sdpa"
"""Eager attention would keep the maps of all sequences at once; flash attention needs no help."""


def sequence_attention(model: nn.Module) -> tuple[nn.Module, ...]:
    """The attention modules that attend within sequences of a row (``cu_seqlens``) under sdpa."""
    told = [module for module in model.modules() if "cu_seqlens" in _signature(module).parameters]
    kinds = tuple({type(module) for module in told})
    # A block, too, is told where the sequences begin, and tells its attention.
    inmost = (module for module in told if not any(isinstance(part, kinds) for part in list(module.modules())[1:]))
    return tuple(module for module in inmost if _backend(module) == BACKEND)


@contextmanager
def joined_sequences(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let modules attend within sequences of equal length in one call while the ``with`` block runs.

    A module is told that its row is a single sequence, and calls its attention function once, which is replaced by one
    that knows the sequences.

    Args:
        modules: from :func:`sequence_attention`.

    Raises:
        UserError: a module does not call its attention function with the whole row.
    """
    rows: dict[nn.Module, Row] = {}
    known: list[tuple[Tensor, Row]] = []  # the layers of a tower share one or two tensors

    def join(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = _signature(module).bind(module, *inputs, **options)
        starts = given.arguments.get("cu_seqlens")
        if starts is None:
            return None
        row = next((row for tensor, row in known if tensor is starts), None)
        if row is None:
            row = Row(starts)
            known.append((starts, row))
        rows[module] = row
        given.arguments["cu_seqlens"] = row.as_one
        return given.args[1:], given.kwargs

    def check(module: nn.Module, *_: Any) -> None:
        if module in rows:
            raise _own_way(module)

    def wrap(original: AttentionFunction) -> AttentionFunction:
        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, Tensor | None]:
            row = rows.pop(module, None)
            if row is None:
                return original(module, query, key, value, attention_mask, **options)
            if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != row.length:
                raise _own_way(module)
            return row.attend(functools.partial(original, module, **options), query, key, value), None

        return attend

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(join, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(check).remove)
        if modules:
            stack.enter_context(wrapped_attention(BACKEND, wrap))
        yield


class Row:
    """Sequences in a row of S tokens, grouped by length.

    Args:
        starts: (sequences + 1,) where each sequence begins, and S.
    """

    def __init__(self, starts: Tensor) -> None:
        lengths = starts.diff().cpu().long()
        self.length = int(lengths.sum())
        self.as_one = torch.tensor([0, self.length], dtype=starts.dtype)  # on the CPU: read without waiting for a GPU
        self._groups = [(length, count) for length, count in zip(*_counted(lengths), strict=True) if length]
        self._order: Tensor | None = None
        if len(self._groups) > 1:
            self._order = lengths.repeat_interleave(lengths).argsort(stable=True).to(starts.device)
            self._back = self._order.argsort()

    def attend(self, function: AttentionFunction, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of each token to those of its sequence.

        Args:
            function: query, key, value (B, H, L, D) and a mask to the output (B, L, H, D), and something else.
            query: (1, H, S, D); ``key`` and ``value`` may have fewer heads.

        Returns:
            (1, S, H, D).
        """
        states = [query[0], key[0], value[0]]
        if self._order is not None:
            states = [tensor[:, self._order.to(tensor.device)] for tensor in states]
        parts = zip(*(tensor.split([a * b for a, b in self._groups], 1) for tensor in states), strict=True)
        outputs = []
        for (length, count), part in zip(self._groups, parts, strict=True):
            batch = (tensor.unflatten(1, (count, length)).transpose(0, 1) for tensor in part)
            outputs.append(function(*batch, None)[0].flatten(0, 1))
        if self._order is None:
            return outputs[0][None]
        output = torch.cat(outputs)
        return output[self._back.to(output.device)][None]


def _counted(lengths: Tensor) -> tuple[list[int], list[int]]:
    """The different lengths, ascending, and how many sequences have each."""
    different, counts = lengths.unique(return_counts=True)
    return different.tolist(), counts.tolist()


def _backend(module: Any) -> str | None:
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def _signature(module: nn.Module) -> inspect.Signature:
    return _signature_of(type(module).forward)


@functools.cache
def _signature_of(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def _own_way(module: nn.Module) -> UserError:
    return UserError(
        f"{type(module).__name__} attends in a way of its own under '{BACKEND}'; set vlm.attn_implementation to eager."
    )
