"""Which tokens of a prompt are the caption's: those that hold at least one of its characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import Tensor

MARKER = "\ue000caption\ue001"
"""Stands in for the caption where the text around it is wanted; private-use characters, which no template trims."""

Span = tuple[int, int]


def caption_spans(text: str, around: Sequence[str], caption: str) -> list[Span]:
    """Where the caption stands in a rendered prompt, as (start, end) of its characters.

    What stands around it decides, and not a search for its words, which the template may hold as well.

    Args:
        text: the prompt.
        around: the same prompt without the caption, in pieces: what stands before it, between two mentions, after it.
        caption: as it was filled in.

    Returns:
        one per mention; empty if the prompt is not made of these pieces.
    """
    mentions = len(around) - 1
    left = len(text) - sum(map(len, around))
    if mentions < 1 or left % mentions or not caption.strip():
        return []
    written = left // mentions
    spans, start = [], 0
    for before, after in pairwise(around):
        start += len(before)
        mention = text[start : start + written]
        # A template may trim the text that it is given, or escape it.
        whole = text[start - len(before) : start] == before and text[start + written :].startswith(after)
        if not (whole and mention.strip()) or (mentions > 1 and mention.strip() != caption.strip()):
            return []
        spans.append((start, start + written))
        start += written
    return spans


def tokens_of_spans(offsets: Sequence[Span], spans: Sequence[Span]) -> Tensor:
    """(S,) which tokens hold characters of the spans, by each token's (start, end) in the text.

    Tokens between two of these, such as parts of a character or blanks whose offsets are trimmed, belong to the span.
    """
    chosen = torch.zeros(len(offsets), dtype=torch.bool)
    for start, end in spans:
        own = [token for token, (first, last) in enumerate(offsets) if first < end and last > start and first < last]
        if own:
            chosen[own[0] : own[-1] + 1] = True
    return chosen


def aligned(chosen: Tensor, own: Sequence[int], ids: Sequence[int]) -> Tensor | None:
    """(S,) the chosen tokens of a text within a prompt whose images are written out.

    Args:
        chosen: (S',) tokens of the text with bare placeholders.
        own: S' token ids of that text.
        ids: S token ids of the prompt.

    Returns:
        None where the two do not agree on the chosen tokens, neither from the end nor from the start.
    """
    if not chosen.any():
        return None
    places = chosen.nonzero().flatten()
    first, last = int(places[0]), int(places[-1])
    result = torch.zeros(len(ids), dtype=torch.bool)
    if common_length(own[::-1], ids[::-1]) >= len(own) - first:
        result[places - len(own)] = True
    elif common_length(own, ids) > last:
        result[places] = True
    else:
        return None
    return result


def tokens_between(ids: Sequence[int], start: int, before: str, after: str, decode: Callable[[Any], str]) -> Tensor:
    """(S,) the tokens between two texts at the end of a prompt, by decoding its tokens; for tokenizers without offsets.

    Args:
        ids: S token ids of the prompt.
        start: the first token of the text that begins with ``before``.
        before: what stands before the caption, decoded from its tokens and without blanks.
        after: what stands between the caption and the prompt's end, likewise.
        decode: from token ids to their text.
    """
    chosen = torch.zeros(len(ids), dtype=torch.bool)
    first, last = start, len(ids)
    while first < last and len(squeezed(decode(ids[start : first + 1]))) <= len(before):
        first += 1
    while last > first and len(squeezed(decode(ids[last - 1 :]))) <= len(after):
        last -= 1
    text = squeezed(decode(ids[start:]))
    if text.startswith(before) and text.endswith(after):
        chosen[first:last] = True
    return chosen


def squeezed(text: str) -> str:
    """A text without its blanks, which templates trim."""
    return "".join(text.split())


def common_length(row: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two prompts share."""
    same = (own == foreign for own, foreign in zip(row, other, strict=False))
    return sum(takewhile(bool, same))
