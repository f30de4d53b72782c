"""Replacing a backend's attention function, and the attention of chosen queries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class CaptionQueries:
    """The queries of the B captions' tokens, as many for every prompt, and their weights in a prompt's mean."""

    from_end: Tensor
    """(B, C) how many tokens follow each in its prompt."""
    weights: Tensor
    """(B, C) 1 / number of the caption's tokens; 0 where a shorter caption has no more."""
    reach: int
    """How many of the last queries a forward pass has to compute for these to be among them."""

    @classmethod
    def of(cls, caption_tokens: Tensor) -> CaptionQueries | None:
        """From (B, S), which tokens are the caption's; None where a prompt has none.

        Prompts are padded on the left.
        """
        counts = caption_tokens.sum(1)
        if not len(counts) or not counts.all():
            return None
        longest, length = int(counts.max()), caption_tokens.shape[1]
        first = caption_tokens.int().argsort(stable=True, dim=1, descending=True)[:, :longest]
        there = torch.arange(longest, device=counts.device) < counts[:, None]
        from_end = torch.where(there, length - 1 - first, 0)  # an idle entry reads the last query, which sees its past
        return cls(from_end, there / counts[:, None], int(from_end.max()) + 1)

    def to(self, device: torch.device) -> CaptionQueries:
        """The same on a device."""
        return CaptionQueries(self.from_end.to(device), self.weights.to(device), self.reach)

    def rows(self, values: Tensor) -> Tensor:
        """(B, A, C, W): the captions' rows of (B or 1, A, Q, W), whose last row is the last token's."""
        places = values.shape[2] - 1 - self.from_end
        batch = torch.arange(len(values), device=places.device)[:, None]
        return values[batch, :, places].transpose(1, 2)

    def mean(self, rows: Tensor) -> Tensor:
        """(B, H, W): the sum over a caption's rows (B, H, C, W), each with its weight."""
        return torch.einsum("bhcw,bc->bhw", rows, self.weights.to(rows.dtype))

    def chunks(self, size: int) -> Iterator[CaptionQueries]:
        """The same, at most ``size`` tokens of each caption at a time."""
        for from_end, weights in zip(self.from_end.split(size, 1), self.weights.split(size, 1), strict=True):
            yield CaptionQueries(from_end, weights, self.reach)


def last_query_attention(query: Tensor, key: Tensor, attention_mask: Tensor | None, **options: Any) -> Tensor:
    """Attention of the last query to all keys, ``softmax(q k / sqrt(D) + M)``, in float32.

    Args:
        query: (B, H, Q, D).
        key: (B, H_kv, S, D); each key head serves H / H_kv query heads.
        attention_mask: None; (B, S) with 1 for tokens and 0 for padding (flash attention); or (B or 1, H or 1, Q, S),
            boolean (True = visible) or additive.
        options: the attention function's own; see :func:`_softmax`.

    Returns:
        (B, H, 1, S) attention weights.
    """
    last = torch.zeros(len(query), 1, dtype=torch.long, device=query.device)
    queries = CaptionQueries(last, torch.ones_like(last), 1)
    return _softmax(query[:, :, -1:], key, visible_keys(attention_mask, queries, key.shape[2], **options), **options)


def caption_attention(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, queries: CaptionQueries, **options: Any
) -> tuple[Tensor, Tensor]:
    """Attention of the captions' tokens to all keys, the mean over a caption's tokens, in float32.

    In memory are as many rows at a time as take no more room than the queries themselves.

    Args:
        query, key, attention_mask, options: as of :func:`last_query_attention`.
        queries: which of the queries are the captions'.

    Returns:
        (B, H, S) mean attention weights, and (B or 1, S) which keys are hidden from some token of the caption.
    """
    length = key.shape[2]
    total = torch.zeros(*query.shape[:2], length, device=query.device)
    hidden = torch.zeros(1, length, dtype=torch.bool, device=query.device)
    with torch.autocast(query.device.type, enabled=False):
        for part in queries.chunks(max(1, query.shape[2] * query.shape[3] // length)):
            visible = visible_keys(attention_mask, part, length, **options)
            total += part.mean(_softmax(part.rows(query), key, visible, **options))
            hidden = hidden | hidden_keys(visible)
    return total, hidden


def visible_keys(
    mask: Tensor | None,
    queries: CaptionQueries,
    length: int,
    *,
    sliding_window: int | None = None,
    is_causal: bool | None = True,
    **_: Any,
) -> Tensor:
    """What queries can see: their rows of the attention mask, or, if that is 2-D or none, what it leaves to causality.

    Args:
        mask: as of :func:`last_query_attention`.
        queries: C of each prompt.
        length: S, of the keys.
        sliding_window: how many of the latest keys are visible; only for masks that do not contain the window.
        is_causal: whether later keys are hidden; only for masks that do not say it.

    Returns:
        (B or 1, H or 1, C, S), boolean (True = visible) or additive.
    """
    if mask is not None and mask.ndim == 4:
        return queries.rows(mask[..., :length])
    # The last query is that of the last key, whatever stands in a cache.
    ahead = torch.arange(length, device=queries.from_end.device) - (length - 1 - queries.from_end[..., None])
    visible = ahead <= 0 if is_causal or is_causal is None else torch.ones_like(ahead, dtype=torch.bool)
    if sliding_window is not None:
        visible = visible & (ahead > -sliding_window)
    if mask is not None:
        visible = visible & mask[:, None, :length].bool()
    return visible[:, None]


def hidden_keys(visible: Tensor) -> Tensor:
    """(B or 1, S): which keys some query cannot see, in no head.

    The weights themselves do not tell: those of a peaked head round to zero.

    Args:
        visible: (B or 1, H or 1, C, S), as :func:`visible_keys` gives it.
    """
    hidden = ~visible if visible.dtype == torch.bool else visible < torch.finfo(visible.dtype).min / 2
    return hidden.all(1).any(1)


def _softmax(
    query: Tensor,
    key: Tensor,
    visible: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Attention weights (B, H, C, S) of queries (B, H, C, D) to keys (B, H_kv, S, D).

    Args:
        query, key: the states.
        visible: as :func:`visible_keys` gives it.
        scaling: factor on the logits; 1 / sqrt(D) if None.
        softcap: logits become softcap * tanh(logits / softcap).
        s_aux: (H,) attention-sink logits, which take part in the softmax without being a key.
    """
    batch, heads, count, dim = query.shape
    key_heads, length = key.shape[1:3]
    # Products in half precision would round large logits by more than the differences between images.
    grouped = query.reshape(batch, key_heads, heads // key_heads * count, dim).float()
    with torch.autocast(query.device.type, enabled=False):
        logits = (grouped @ key.float().transpose(2, 3)).view(batch, heads, count, length)
    logits *= dim**-0.5 if scaling is None else scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill_(~visible, -torch.inf) if visible.dtype == torch.bool else logits.add_(visible)
    if s_aux is not None:
        sink = s_aux.float().reshape(1, heads, 1, 1).expand(batch, -1, count, -1)
        return torch.cat([logits, sink], -1).softmax(-1)[..., :-1]
    return logits.softmax(-1)
