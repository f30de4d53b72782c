"""Replacing a backend's attention function, and the attention of the last query."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


@contextmanager
def wrapped_attention(backend: str, wrap: Callable[[AttentionFunction], AttentionFunction]) -> Iterator[None]:
    """Replace ``backend``'s attention function while the ``with`` block runs; blocks may nest.

    Args:
        backend: the name of an attention implementation.
        wrap: gives the replacement for the present function.
    """
    # transformers' registry has a local layer over its global one, meant for such overrides.
    local = ALL_ATTENTION_FUNCTIONS._local_mapping
    overridden = local.get(backend)
    # The registry has no eager attention: every modeling file has its own, which an entry of that name replaces.
    ALL_ATTENTION_FUNCTIONS[backend] = wrap(ALL_ATTENTION_FUNCTIONS.get(backend, _eager_attention))
    try:
        yield
    finally:
        if overridden is None:
            del ALL_ATTENTION_FUNCTIONS[backend]
        else:
            ALL_ATTENTION_FUNCTIONS[backend] = overridden


def _eager_attention(module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """The eager attention of the module's own modeling file."""
    return vars(sys.modules[type(module).__module__])["eager_attention_forward"](module, *arguments, **options)


def last_query_attention(
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Attention of the last query to all keys, ``softmax(q k / sqrt(D) + M)``, in float32.

    Args:
        query: (B, H, Q, D).
        key: (B, H_kv, S, D); each key head serves H / H_kv query heads.
        attention_mask: None; (B, S) with 1 for tokens and 0 for padding (flash attention); or (B or 1, H or 1, Q, S),
            boolean (True = visible) or additive.
        scaling: factor on the logits; 1 / sqrt(D) if None.
        sliding_window: how many of the latest keys are visible; only for masks that do not contain the window.
        softcap: logits become softcap * tanh(logits / softcap).
        s_aux: (H,) attention-sink logits, which take part in the softmax without being a key.

    Returns:
        (B, H, 1, S) attention weights.
    """
    batch, heads, dim = query.shape[0], query.shape[1], query.shape[-1]
    key_heads, length = key.shape[1:3]
    # Products in half precision would round large logits by more than the differences between images.
    grouped = query[:, :, -1].reshape(batch, key_heads, heads // key_heads, dim).float()
    with torch.autocast(query.device.type, enabled=False):
        logits = torch.einsum("bkgd,bksd->bkgs", grouped, key.float()).reshape(batch, heads, length)
    logits = logits * (dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = _masked(logits, attention_mask, sliding_window)
    if s_aux is not None:
        sink = s_aux.float().reshape(1, heads, 1).expand(batch, -1, -1)
        return torch.cat([logits, sink], -1).softmax(-1)[:, :, None, :-1]
    return logits.softmax(-1)[:, :, None]


def _masked(logits: Tensor, mask: Tensor | None, sliding_window: int | None) -> Tensor:
    """Apply the last query's row of a mask to logits (B, H, S)."""
    length = logits.shape[-1]
    if mask is None or mask.ndim == 2:
        visible = torch.ones(length, dtype=torch.bool, device=logits.device)
        if sliding_window is not None:
            visible &= torch.arange(length, device=logits.device) > length - 1 - sliding_window
        if mask is not None:
            visible = visible & mask[:, None, :length].bool()
        return logits.masked_fill(~visible, -torch.inf)
    row = mask[:, :, -1, :length]
    return logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row.float()
