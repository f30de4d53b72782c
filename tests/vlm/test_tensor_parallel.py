"""Tensor parallelism without a second process: what is gathered, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lad_pl import UserError, VLMSpec
from lad_pl.types import Evidence
from lad_pl.vlm.tensor_parallel import TensorParallel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel": 0}, "is a number of processes"),
        ({"tensor_parallel": 2, "device_map": "auto"}, "goes without vlm.device_map"),
        ({"options": {"tp_plan": "auto"}}, "by vlm.tensor_parallel"),
        ({"options": {"distributed_config": {"fsdp_size": 2}}}, "by vlm.tensor_parallel"),
    ],
)
def test_other_ways_of_sharing_are_refused(tiny_folder: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VLMSpec(str(tiny_folder), **options).load_model()


class OfTwo(TensorParallel):
    """The first of two processes, with what the second one holds."""

    def __init__(self, theirs: list[Tensor], num_heads: int) -> None:
        self.size, self.num_heads, self.group = 2, num_heads, None
        self.theirs = theirs

    def _gathered(self, values: Tensor) -> list[Tensor]:
        return [values, self.theirs.pop(0)]


def test_heads_are_gathered_in_the_order_of_the_processes() -> None:
    attention, log_probs = torch.rand(2, 3, 4, 5), torch.randn(2, 5)
    mine, theirs = attention[:, :, :2], attention[:, :, 2:]
    gathered = OfTwo([log_probs, theirs], 4).gather_heads(Evidence.from_heads(log_probs, mine))
    assert torch.equal(gathered.attention, attention)
    torch.testing.assert_close(gathered.layer_attention, attention.mean(2))
    assert gathered.caption_attention is None
    captions = torch.rand(2, 3, 4, 5)
    evidence = Evidence.from_heads(log_probs, mine, captions[:, :, :2])
    gathered = OfTwo([log_probs, theirs, captions[:, :, 2:]], 4).gather_heads(evidence)
    assert torch.equal(gathered.caption_attention, captions)


def test_sums_over_heads_are_added_up_once() -> None:
    mine, theirs = torch.rand(2, 2, 7)
    torch.testing.assert_close(OfTwo([theirs], 4).sum_of_heads(mine, 2), mine + theirs)
    assert OfTwo([theirs], 4).sum_of_heads(mine, 4) is mine
    with pytest.raises(UserError, match="2 of 6 attention heads"):
        OfTwo([theirs], 6).sum_of_heads(mine, 2)


def test_heads_that_every_process_has_are_not_doubled() -> None:
    attention, log_probs = torch.rand(2, 3, 4, 5), torch.randn(2, 5)
    gathered = OfTwo([log_probs], 4).gather_heads(Evidence.from_heads(log_probs, attention, attention))
    assert torch.equal(gathered.attention, attention)
    assert torch.equal(gathered.caption_attention, attention)


def test_processes_that_disagree_are_refused() -> None:
    attention, log_probs = torch.rand(2, 3, 2, 5), torch.randn(2, 5)
    with pytest.raises(UserError, match="come to different answers"):
        OfTwo([log_probs + 0.1], 4).gather_heads(Evidence.from_heads(log_probs, attention))
    with pytest.raises(UserError, match="2 of 6 attention heads"):
        OfTwo([log_probs], 6).gather_heads(Evidence.from_heads(log_probs, attention))


def test_a_plan_that_does_not_fit_is_reported() -> None:
    with pytest.raises(UserError, match="cannot split this model"), OfTwo([], 4).computing():
        raise RuntimeError("aten.where.self got mixed torch.Tensor and DTensor")
    with pytest.raises(RuntimeError, match="another"), OfTwo([], 4).computing():
        raise RuntimeError("another")


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> type[nn.Parameter]:
    """A parameter of which this process holds a third."""

    class Part(nn.Parameter):
        device_mesh = type("Mesh", (), {"get_group": lambda self: None, "size": lambda self: 3})()

    monkeypatch.setattr("lad_pl.vlm.tensor_parallel.DTensor", Part)
    return Part


def model_of(layer: nn.Module, head: nn.Module) -> nn.Module:
    model = nn.Sequential(layer, head)
    model.get_input_embeddings = lambda: None
    model.get_output_embeddings = lambda: head
    model.config = type("Config", (), {"get_text_config": lambda self: self, "num_attention_heads": 4})()
    return model


def linear(weight: nn.Parameter) -> nn.Linear:
    module = nn.Linear(2, 2)
    module.weight = weight
    return module


def test_uneven_heads_are_refused(part: type[nn.Parameter]) -> None:
    layer, head = (linear(part(torch.zeros(2, 2))) for _ in range(2))
    with pytest.raises(UserError, match="tensor_parallel is 3, but the model has num_attention_heads = 4"):
        TensorParallel(model_of(layer, head))


def test_layers_that_are_not_split_are_refused(part: type[nn.Parameter]) -> None:
    """Only the head is, as where transformers has no plan for a family's decoder: nearly all would lie everywhere."""
    layer, head = linear(nn.Parameter(torch.zeros(2, 2))), linear(part(torch.zeros(2, 2)))
    with pytest.raises(UserError, match="no plan for splitting the layers of Sequential"):
        TensorParallel(model_of(layer, head))
    assert TensorParallel(model_of(layer, layer)).size == 1
