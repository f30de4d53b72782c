"""The same numbers on one process and on two (gloo, CPU): uneven shares, processes without a sample, shared weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from commands import DDP, ENVIRONMENT, QUIET, check_equal, fails, write_annotations
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from paths import ROOT
from torch import Tensor, nn

from lad_pl import AttentionGuidedDebiasing, UserError, VLMSpec
from lad_pl.cli import main
from lad_pl.types import Evidence
from lad_pl.vlm.tensor_parallel import TensorParallel

HELPERS = ROOT / "tests" / "helpers"
SHARED = [*DDP, "--model.vlm.tensor_parallel=2"]
FEWER = ["--data.num_calibration=1", "--data.num_test=1"]
METHODS = ["--model.methods=[cot,contextual_calibration]", "--model.method.thought_tokens=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def base(tiny_folder: Path, folder: Path) -> list[str]:
    (folder / "data").mkdir()
    return [
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=84",
        f"--data.annotations={write_annotations(folder / 'data', 8)}",
        "--data.num_calibration=3",
        "--data.num_permutations=3",
        *QUIET,
    ]


@pytest.fixture(scope="module")
def one(base: list[str], folder: Path) -> Path:
    """The run folders of one process."""
    for name, options in {"even": METHODS, "fewer": FEWER}.items():
        for command in ("fit", "test"):
            assert main([command, *base, *options, f"--trainer.default_root_dir={folder / 'one' / name}"]) == 0
    return folder / "one"


@pytest.fixture(scope="module")
def two(base: list[str], folder: Path) -> Path:
    """The run folders of two processes, which take in all three cases one after the other."""
    cases = {"even": [*DDP, *METHODS], "fewer": [*DDP, *FEWER], "shared": [*SHARED, *METHODS]}
    commands = [
        [command, *base, *options, f"--trainer.default_root_dir={folder / 'two' / name}"]
        for name, options in cases.items()
        for command in ("fit", "test")
    ]
    finished = subprocess.run(
        [sys.executable, str(HELPERS / "several_commands.py"), json.dumps(commands)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("Metrics: ") == 3  # said once each
    return folder / "two"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["even", "fewer"])
def test_two_processes_equal_one(one: Path, two: Path, name: str) -> None:
    check_equal(two / name, one / name, tolerance=1e-6)


@pytest.mark.slow
def test_two_processes_that_share_the_weights_equal_one(one: Path, two: Path) -> None:
    """Sums in another order; heads of attention from both, in the right order; the model's words."""
    check_equal(two / "shared", one / "even", tolerance=1e-5)


@pytest.mark.slow
def test_a_mistake_that_one_process_meets(base: list[str], one: Path, folder: Path, tmp_path: Path) -> None:
    """A broken image in the second process's share: one line, and nobody waits."""
    samples = json.loads((folder / "data" / "annotations.json").read_text())
    (folder / "data" / "broken.png").write_bytes(b"no picture")
    samples[4]["image_ids"] = ["broken.png", *samples[4]["image_ids"][1:]]
    (tmp_path / "annotations.json").write_text(json.dumps(samples))
    options = [
        *(option for option in base if "annotations" not in option),
        f"--data.annotations={tmp_path / 'annotations.json'}",
        f"--data.images={folder / 'data'}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        f"--ckpt_path={one / 'even' / 'calibration.ckpt'}",
    ]
    command = [sys.executable, "-m", "lad_pl", "test", *options, *DDP]
    finished = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    lines = [line for line in finished.stderr.splitlines() if line.strip() and "Loading weights" not in line]
    assert finished.returncode == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("lad_pl: Sample 4: image file")


# --------------------------------------------------------------------------------------------------- what is refused


def test_sharing_needs_as_many_processes(base: list[str], one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "test", *base, f"--trainer.default_root_dir={one / 'even'}", "--model.vlm.tensor_parallel=2")
    assert "the run has 1 processes; set trainer.devices times trainer.num_nodes to 2" in line


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


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_would_split_nothing_are_refused(tiny_folder: Path, strategy: type) -> None:
    module = AttentionGuidedDebiasing(VLMSpec(str(tiny_folder)))
    module.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    module.trainer.strategy.__class__ = strategy  # on the CPU, Lightning itself refuses it
    with pytest.raises(UserError, match="would leave a whole model on every device"):
        module._check_processes()
    module.trainer.strategy.__class__ = DDPStrategy
    module._check_processes()


# ---------------------------------------------------------------------------------- shards, without a second process


class OfTwo(TensorParallel):
    """The first of two processes, with what the second one holds."""

    def __init__(self, theirs: list[Tensor], num_heads: int) -> None:
        self.size, self.num_heads, self.group = 2, num_heads, None
        self.theirs = theirs

    def _gathered(self, values: Tensor) -> list[Tensor]:
        return [values, self.theirs.pop(0)]


def test_heads_are_put_together_in_the_order_of_the_processes() -> None:
    attention, log_probs = torch.rand(2, 3, 4, 5), torch.randn(2, 5)
    mine, theirs = attention[:, :, :2], attention[:, :, 2:]
    gathered = OfTwo([log_probs, theirs], 4).gather_heads(Evidence.from_heads(log_probs, mine))
    assert torch.equal(gathered.attention, attention)
    torch.testing.assert_close(gathered.layer_attention, attention.mean(2))


def test_heads_that_every_process_has_are_not_doubled() -> None:
    attention, log_probs = torch.rand(2, 3, 4, 5), torch.randn(2, 5)
    assert torch.equal(
        OfTwo([log_probs], 4).gather_heads(Evidence.from_heads(log_probs, attention)).attention, attention
    )


def test_processes_that_disagree_are_refused() -> None:
    attention, log_probs = torch.rand(2, 3, 2, 5), torch.randn(2, 5)
    with pytest.raises(UserError, match="come to different answers"):
        OfTwo([log_probs + 0.1], 4).gather_heads(Evidence.from_heads(log_probs, attention))
    with pytest.raises(UserError, match="2 of 6 attention heads"):
        OfTwo([log_probs], 6).gather_heads(Evidence.from_heads(log_probs, attention))


def test_a_plan_that_does_not_fit_is_told() -> None:
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
