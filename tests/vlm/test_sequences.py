"""Joined sequences against transformers' own loop over them, and against the textbook."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image
from subject import Subject
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from lad_pl import PromptSpec, UserError
from lad_pl.vlm.attention import wrapped_attention
from lad_pl.vlm.sequences import Row, joined_sequences, sequence_attention

CLOSE = {"atol": 1e-5, "rtol": 0}
DEPTH, FULL = 4, (1, 3)


@pytest.fixture(scope="module")
def towers() -> dict[str, PreTrainedModel]:
    """One Qwen2.5-VL tower, two of its four layers with windows of 8 x 8 patches, under two backends."""
    shape = {"depth": DEPTH, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32}
    built = {}
    for backend in ("sdpa", "eager"):
        config = Qwen2_5_VLVisionConfig(**shape, fullatt_block_indexes=FULL)  # each its own: it holds the backend
        built[backend] = Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation=backend)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in built["sdpa"].named_parameters():
        if "qkv" in name:  # so that tokens do not look at all others alike
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    built["eager"].load_state_dict(built["sdpa"].state_dict())
    return {backend: tower.eval() for backend, tower in built.items()}


@contextmanager
def counted() -> Iterator[list[int]]:
    """Queries in each call of the sdpa function."""
    calls: list[int] = []

    def wrap(original: Callable) -> Callable:
        def counting(module: nn.Module, query: Tensor, *inputs: Any, **options: Any) -> Any:
            calls.append(query.shape[0] * query.shape[2])
            return original(module, query, *inputs, **options)

        return counting

    with wrapped_attention("sdpa", wrap):
        yield calls


def window_lengths(rows: int, columns: int) -> list[int]:
    """Patches in each window of an image: 4 x 4 merged patches, fewer at the borders."""
    heights, widths = ([min(4, side // 2 - start) for start in range(0, side // 2, 4)] for side in (rows, columns))
    return [4 * height * width for height, width in itertools.product(heights, widths)]


@pytest.mark.parametrize(
    "grids",
    [
        [(24, 24)] * 3,  # 336 x 336 pixels
        [(34, 46)],
        [(34, 46), (24, 24), (10, 6), (46, 34), (24, 24)],
        [(2, 2)],
    ],
    ids=["equal", "borders", "mixed", "one window"],
)
@torch.no_grad()
def test_a_tower_gives_what_it_gives_by_itself(
    towers: dict[str, PreTrainedModel], grids: list[tuple[int, int]]
) -> None:
    grid_thw = torch.tensor([(1, *grid) for grid in grids])
    pixels = torch.randn(int(grid_thw.prod(1).sum()), 1176, generator=torch.Generator().manual_seed(1))
    with counted() as apart:
        expected = towers["sdpa"](pixels, grid_thw=grid_thw)
    with counted() as together, joined_sequences(sequence_attention(towers["sdpa"])):
        got = towers["sdpa"](pixels, grid_thw=grid_thw)
    eager = towers["eager"](pixels, grid_thw=grid_thw)
    assert expected.pooler_output.std() > 0.01
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(got[name], expected[name], **CLOSE)
        torch.testing.assert_close(got[name], eager[name], **CLOSE)
    windows = [length for grid in grids for length in window_lengths(*grid)]
    images = [rows * columns for rows, columns in grids]
    alone = DEPTH - len(FULL)
    assert len(apart) == alone * len(windows) + len(FULL) * len(images)
    assert len(together) == alone * len(set(windows)) + len(FULL) * len(set(images))
    assert sum(together) == sum(apart) == DEPTH * len(pixels)


@pytest.mark.parametrize("name", ["glm4v", "llavaonevision1_5", "qwen2_5_vl"])
@torch.no_grad()
def test_families_of_images_of_any_size(name: str, tmp_path: Path, pictures: list[Image.Image]) -> None:
    """As lad_pl runs them; positional and named arguments, a class token, several images of one size."""
    family = next(family for family in FAMILIES if family.name == name)
    subject = Subject(family, family.build(tmp_path / "model"), pictures)
    vlm = subject.vlm
    batch = vlm.encoder(PromptSpec(image_size=None))([subject.entry(6, 1), subject.entry(6, 1, 1)])
    with counted() as together:
        got = vlm.with_features(batch).features.outputs
    with counted() as apart:
        expected = [vlm.model.base_model.get_image_features(**vision, return_dict=True) for vision in batch.vision]
    assert len(together) < len(apart) and sum(together) == sum(apart)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.cat(list(ours.pooler_output)), torch.cat(list(theirs.pooler_output)), **CLOSE)


@pytest.mark.parametrize("lengths", [[3, 3, 3], [5, 2, 5, 0, 1, 2], [4]])
def test_a_row_against_the_textbook(lengths: list[int]) -> None:
    """Two query heads to a key head; a sequence may be empty."""
    size = sum(lengths)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, size, 8, generator=generator)
    key, value = (torch.randn(1, 2, size, 8, generator=generator) for _ in range(2))

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: None) -> tuple[Tensor, None]:
        output = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return output.transpose(1, 2), None

    starts = np.cumsum([0, *lengths])
    got = Row(torch.tensor(starts, dtype=torch.int32)).attend(attention, query, key, value)
    expected = np.zeros((size, 4, 8))
    q, k, v = (tensor[0].double().numpy() for tensor in (query, key, value))
    for head, (start, end) in itertools.product(range(4), itertools.pairwise(starts)):
        if start < end:
            weights = np.exp(q[head, start:end] @ k[head // 2, start:end].T / 8**0.5)
            expected[start:end, head] = weights / weights.sum(1, keepdims=True) @ v[head // 2, start:end]
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-5)


class Attention(nn.Module):
    """What a tower's attention looks like, in several ways of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.config = type("Config", (), {"_attn_implementation": "sdpa"})
        self.way = way

    def forward(self, hidden: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        states = hidden[None, None]
        mask = torch.zeros(len(hidden), len(hidden)) if self.way == "mask" else None
        if self.way == "padded":
            states = states.expand(2, -1, -1, -1)
        if self.way == "none":
            return hidden
        return ALL_ATTENTION_FUNCTIONS["sdpa"](self, states, states, states, mask)[0][0, :, 0]


@pytest.mark.parametrize("way", ["mask", "padded", "none"])
def test_an_attention_of_another_kind_is_refused(way: str) -> None:
    module = Attention(way)
    with (
        joined_sequences(sequence_attention(module)),
        pytest.raises(UserError, match="Attention attends in a way of its own under 'sdpa'; set"),
    ):
        module(torch.randn(4, 8), torch.tensor([0, 2, 4]))


def test_nothing_is_left_behind(towers: dict[str, PreTrainedModel]) -> None:
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    module = Attention("usual")
    hidden, starts = torch.randn(4, 8), torch.tensor([0, 2, 4])
    whole = module(hidden, starts)  # it does not look at the sequences
    with joined_sequences(sequence_attention(module)):
        joined = module(hidden, cu_seqlens=starts)
        torch.testing.assert_close(module(hidden), whole)  # without sequences, as it is
    assert not torch.allclose(joined, whole)
    torch.testing.assert_close(module(hidden, starts), whole)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa
    assert names(sequence_attention(towers["sdpa"])) == ["Qwen2_5_VLVisionAttention"] * DEPTH  # and not their blocks
    assert sequence_attention(towers["eager"]) == ()


def names(modules: Sequence[nn.Module]) -> list[str]:
    return [type(module).__name__ for module in modules]
