"""The attention of the last query against the textbook."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lad_pl.vlm.attention import last_query_attention


def full_softmax(query: Tensor, key: Tensor, additive: Tensor, softcap: float | None, sinks: Tensor | None) -> Tensor:
    """The last row by the textbook, head by head."""
    rows = []
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            keys = key[b, h // (query.shape[1] // key.shape[1])]
            logits = keys @ query[b, h, -1] / query.shape[-1] ** 0.5
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
