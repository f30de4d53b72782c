"""Content-free prompts, for contextual calibration (Zhao et al. 2021, arXiv:2102.09690).

A content-free prompt has the caption "N/A"; whatever the model prefers there is bias. As the images come first in a
prompt, it differs from the prompt with the sample's caption in its last few tokens only. So the images are processed
once, and the content-free prompts' forward pass runs over those few tokens, on the keys and values that the prompts'
own pass has left in the cache.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lad_pl.types import Batch
from lad_pl.vlm.caption import common_length

CONTENT_FREE = "N/A"
"""The caption of the content-free prompts."""


def swap_text(
    row: dict[str, Tensor], tail: int, rendered: Sequence[int], other: Sequence[int]
) -> dict[str, Tensor] | None:
    """Replace the end of a prompt's text by that of another text.

    Exact if the processor's tokens and the tokenizer's own are the same from a token on that both texts share: a
    byte-pair encoding never merges across such a boundary.

    Args:
        row: token fields (S,) of the prompt, from the processor.
        tail: number of tokens after the last image and its delimiters.
        rendered: the prompt tokenised by the tokenizer alone, with bare image placeholders.
        other: the other prompt, in the same way.

    Returns:
        Token fields (S',), or None where the result might not be exact: the texts differ before the end of the last
        image or before the tokens agree, or a field varies over the replaced text.
    """
    ids, shared = row["input_ids"].tolist(), common_length(rendered, other)
    replaced = len(rendered) - shared
    if replaced >= min(tail, common_length(ids[::-1], rendered[::-1])):
        return None
    start = len(ids) - replaced
    if any((values[start - 1 :] != values[-1]).any() for name, values in row.items() if name != "input_ids"):
        return None
    fields = {name: values[-1].expand(len(other) - shared) for name, values in row.items()}
    fields["input_ids"] = row["input_ids"].new_tensor(other[shared:])
    return {name: torch.cat([values[:start], fields[name]]) for name, values in row.items()}


@dataclass(frozen=True)
class SharedPrefix:
    """The columns of the prompts' key-value cache that the content-free prompts share."""

    starts: tuple[int, ...]
    """B: the column of a prompt's cache that becomes column 0. Rows are shifted so that every prefix ends in the same
    column; where a row has no such column (below 0), its content-free prompt has padding there."""
    length: int
    """Columns kept, padding on the left included."""
    suffix: int
    """Number of tokens of the content-free prompts that are not in the cache; the same in every row."""

    @classmethod
    def of(cls, batch: Batch, free: Batch) -> SharedPrefix | None:
        """Compare prompts with their content-free counterparts, both padded on the left.

        Returns:
            None if they differ in an image, or in another token that is not plain text. The tokens of the content-free
            caption are all in the suffix, as its pass reads their attention, shared or not.
        """
        kept, free_kept = (item.tokens["attention_mask"].bool().cpu() for item in (batch, free))
        rows = [ids[mask].tolist() for ids, mask in zip(batch.tokens["input_ids"].cpu(), kept, strict=True)]
        others = [ids[mask].tolist() for ids, mask in zip(free.tokens["input_ids"].cpu(), free_kept, strict=True)]
        captions = [tokens[mask].tolist() for tokens, mask in zip(free.caption_tokens.cpu(), free_kept, strict=True)]
        shared = [
            min(common_length(row, other), caption.index(True) if True in caption else len(other))
            for row, other, caption in zip(rows, others, captions, strict=True)
        ]
        suffix = max(1, *(len(other) - length for other, length in zip(others, shared, strict=True)))
        width = free_kept.shape[1] - suffix
        if width < 1 or not _is_text(free, width):
            return None
        padding, free_padding = ((~mask).sum(1).tolist() for mask in (kept, free_kept))
        starts = tuple(own - other for own, other in zip(padding, free_padding, strict=True))
        return cls(starts, width, suffix)

    def cut(self, cache: DynamicCache) -> DynamicCache:
        """A cache with the prefix's keys and values alone; ``cache`` is left as it is.

        Args:
            cache: of the prompts' forward pass, with all past tokens in its sliding-window layers.
        """
        prefix = copy.copy(cache)
        prefix.layers = [self._cut_layer(copy.copy(layer)) for layer in cache.layers]
        return prefix

    def _cut_layer(self, layer: Any) -> Any:
        if layer.keys is not None:  # a layer that shares another's has none
            layer.keys, layer.values = self._columns(layer.keys), self._columns(layer.values)
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = self.length  # while recording its past, it cuts to the window by itself
        return layer

    def _columns(self, states: Tensor) -> Tensor:
        """(B, H, S, D) to (B, H, length, D); a view where all rows start alike."""
        if len(set(self.starts)) == 1 and self.starts[0] >= 0:
            return states[:, :, self.starts[0] : self.starts[0] + self.length]
        starts = torch.tensor(self.starts, device=states.device)[:, None]
        columns = (starts + torch.arange(self.length, device=states.device)).clamp(min=0)  # below: padding, masked
        return states.gather(2, columns[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def can_be_cut(cache: Cache) -> bool:
    """Whether every layer keeps the keys and values of all past tokens, or none; recurrent states cannot be rolled
    back."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer) for layer in cache.layers)


def _is_text(free: Batch, start: int) -> bool:
    """Whether all columns from ``start`` on hold text, and no padding."""
    fields: dict[str, Any] = {name: values for name, values in free.tokens.items() if name != "input_ids"}
    plain = all(bool((values[:, start:] == values[:, -1:]).all()) for values in fields.values())
    return plain and bool((free.position_of_token[:, start:] < 0).all())
