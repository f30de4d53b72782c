"""The attention of the last query, and of a caption's, against the textbook."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lad_pl.vlm.attention import CaptionQueries, caption_attention, last_query_attention


def full_softmax(
    query: Tensor, key: Tensor, additive: Tensor, softcap: float | None, sinks: Tensor | None, place: int = -1
) -> Tensor:
    """One query's row by the textbook, head by head."""
    rows = []
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            keys = key[b, h // (query.shape[1] // key.shape[1])]
            logits = keys @ query[b, h, place] / query.shape[-1] ** 0.5
            if softcap is not None:
                logits = softcap * (logits / softcap).tanh()
            logits = logits + additive[b]
            if sinks is not None:
                logits = torch.cat([logits, sinks[h : h + 1]])
            rows.append(logits.softmax(-1)[: key.shape[2]])
    return torch.stack(rows).view(*query.shape[:2], 1, key.shape[2])


@pytest.mark.parametrize("kind", ["none", "bool", "float", "padding", "window", "softcap", "sinks"])
def test_last_row_under_every_kind_of_mask(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 6, 7, 8, generator=generator), torch.randn(2, 2, 7, 8, generator=generator)
    visible = torch.ones(2, 7, dtype=torch.bool)
    options, mask = {}, None
    if kind in ("bool", "float", "padding"):
        visible[1, :3] = False
        causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None] & visible[:, None, None]
        additive = torch.zeros(causal.shape).masked_fill(~causal, -torch.inf)
        mask = {"bool": causal, "float": additive, "padding": visible.long()}[kind]
    elif kind == "window":
        options["sliding_window"] = 3
        visible[:, :4] = False
    elif kind == "softcap":
        options["softcap"] = 0.7
    elif kind == "sinks":
        options["s_aux"] = torch.randn(6, generator=generator)
    got = last_query_attention(query, key, mask, **options)
    additive_row = torch.zeros(2, 7).masked_fill(~visible, -torch.inf)
    expected = full_softmax(query, key, additive_row, options.get("softcap"), options.get("s_aux"))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_half_precision_does_not_round_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (5 * torch.randn(1, 4, 300, 16, generator=generator).bfloat16() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        got = last_query_attention(query, key, None)
    torch.testing.assert_close(got, last_query_attention(query.float(), key.float(), None), atol=1e-6, rtol=0)


def captions(*tokens: tuple[int, ...], length: int = 7) -> CaptionQueries:
    """One tuple of tokens per prompt."""
    marks = torch.tensor([[place in own for place in range(length)] for own in tokens])
    queries = CaptionQueries.of(marks)
    assert queries is not None
    return queries


@pytest.mark.parametrize("kind", ["none", "bool", "float", "heads", "padding", "window", "prefix", "softcap", "sinks"])
@pytest.mark.parametrize("cached", [0, 3])
def test_a_captions_rows_under_every_kind_of_mask(kind: str, cached: int) -> None:
    """Captions of different length, none at the end; each token with its own row of the mask, also behind a cache."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 6, 7, 8, generator=generator), torch.randn(2, 2, 7, 8, generator=generator)
    places = ((3, 4, 5), (4,))
    options, mask = {}, None
    visible = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 6, 7, 7).clone()
    if kind in ("bool", "float", "padding", "heads"):
        visible[1, :, :, :3] = False
        if kind == "heads":
            visible[:, 1, :, 4] = False
        additive = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
        padding = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
        full = {"bool": visible[:, :1], "float": additive[:, :1], "heads": additive, "padding": padding}[kind]
        mask = full if kind == "padding" else full[:, :, cached:]
    elif kind == "window":
        options["sliding_window"] = 3
        visible &= torch.ones(7, 7, dtype=torch.bool).triu(-2)
    elif kind == "prefix":  # PaliGemma's: tokens of the prefix see one another in both directions
        visible[:, :, :5, :5] = True
        mask = visible[:1, :1, cached:]
    elif kind == "softcap":
        options["softcap"] = 0.7
    elif kind == "sinks":
        options["s_aux"] = torch.randn(6, generator=generator)
    got, hidden = caption_attention(query[:, :, cached:], key, mask, captions(*places), **options)
    for b, own in enumerate(places):
        rows = []
        for place in own:
            additive = torch.zeros(7).masked_fill(~visible[b, 0, place], -torch.inf).expand(2, 7)
            row = full_softmax(query, key, additive, options.get("softcap"), options.get("s_aux"), place)[b, :, 0]
            if kind == "heads":
                other = additive.masked_fill(torch.arange(7) == 4, -torch.inf)
                row[1] = full_softmax(query, key, other, None, None, place)[b, 1, 0]
            rows.append(row)
        torch.testing.assert_close(got[b], torch.stack(rows).mean(0), atol=1e-6, rtol=0)
        # From which keys some token of the caption is cut off; an idle entry of the shorter caption reads the last row.
        read = {*own, 6} if len(own) < 3 else {*own}
        unseen = ~torch.stack([visible[b, :, place].any(0) for place in read])
        if kind == "padding":
            unseen[:, :3] |= b == 1
        torch.testing.assert_close(hidden.expand(2, -1)[b], unseen.any(0))


def test_few_rows_at_a_time_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 4, 40, 8, generator=generator), torch.randn(1, 4, 400, 8, generator=generator)
    queries, sizes = captions((*range(370, 390),), length=400), []
    split = CaptionQueries.chunks
    monkeypatch.setattr(CaptionQueries, "chunks", lambda self, size: sizes.append(size) or split(self, size))
    got, _ = caption_attention(query, key, None, queries)
    assert sizes == [1]  # no more numbers than the queries have
    monkeypatch.setattr(CaptionQueries, "chunks", lambda self, _: split(self, 7))
    torch.testing.assert_close(caption_attention(query, key, None, queries)[0], got, atol=1e-6, rtol=0)


def test_without_tokens_there_are_no_queries() -> None:
    assert CaptionQueries.of(torch.tensor([[False, True], [False, False]])) is None
    assert CaptionQueries.of(torch.zeros(0, 3, dtype=torch.bool)) is None
