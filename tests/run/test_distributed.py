"""The same numbers on one process and on two (gloo, CPU): uneven shares, processes without a sample, shared weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
from commands import DDP, QUIET, check_equal, fails, write_annotations
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from paths import ROOT
from several_commands import BEGINS

from lad_pl import UserError
from lad_pl.cli import main
from lad_pl.run.processes import check_trainer

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
def broken(base: list[str], one: Path, folder: Path) -> list[str]:
    """A test run with a broken image in the second process's share."""
    samples = json.loads((folder / "data" / "annotations.json").read_text())
    picture = bytearray((folder / "data" / samples[4]["image_ids"][0]).read_bytes())
    picture[picture.index(b"IDAT") + 4] = 0  # which only decoding finds
    (folder / "data" / "broken.png").write_bytes(picture)
    samples[4]["image_ids"] = ["broken.png", *samples[4]["image_ids"][1:]]
    (folder / "data" / "broken.json").write_text(json.dumps(samples))
    return [
        "test",
        *(option for option in base if "annotations" not in option),
        f"--data.annotations={folder / 'data' / 'broken.json'}",
        f"--trainer.default_root_dir={folder / 'broken'}",
        f"--ckpt_path={one / 'even' / 'calibration.ckpt'}",
        *DDP,
    ]


@pytest.fixture(scope="module")
def two(base: list[str], broken: list[str], folder: Path) -> Path:
    """The run folders of two processes, which run all three cases and then a broken one."""
    cases = {"even": [*DDP, *METHODS], "fewer": [*DDP, *FEWER], "shared": [*SHARED, *METHODS]}
    commands = [
        [command, *base, *options, f"--trainer.default_root_dir={folder / 'two' / name}"]
        for name, options in cases.items()
        for command in ("fit", "test")
    ]
    finished = subprocess.run(
        [sys.executable, str(HELPERS / "several_commands.py"), json.dumps([*commands, broken])],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 2, finished.stderr[-3000:]
    assert finished.stdout.count("Metrics: ") == 3  # said once each
    (folder / "stderr.txt").write_text(finished.stderr)
    return folder / "two"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["even", "fewer"])
def test_two_processes_equal_one(one: Path, two: Path, name: str) -> None:
    check_equal(two / name, one / name, tolerance=1e-6)


@pytest.mark.slow
def test_two_processes_that_share_the_weights_equal_one(one: Path, two: Path) -> None:
    """Sums in another order; heads of attention from both, in order; generated texts."""
    check_equal(two / "shared", one / "even", tolerance=1e-5)


@pytest.mark.slow
def test_a_user_error_in_one_process(two: Path) -> None:
    """A broken image in the second process's share: one line, and nobody waits."""
    printed = (two.parent / "stderr.txt").read_text().rpartition(BEGINS)[2]
    lines = [line for line in printed.splitlines() if line.strip() and "Loading weights" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("lad_pl: Sample 4: image file")


# --------------------------------------------------------------------------------------------------- what is refused


def test_sharing_needs_as_many_processes(base: list[str], one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "test", *base, f"--trainer.default_root_dir={one / 'even'}", "--model.vlm.tensor_parallel=2")
    assert "the run has 1 processes; set trainer.devices times trainer.num_nodes to 2" in line


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_would_split_nothing_are_refused(strategy: type) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.strategy.__class__ = strategy  # on the CPU, Lightning itself refuses it
    with pytest.raises(UserError, match="would leave a whole model on every device"):
        check_trainer(trainer, tensor_parallel=1)
    trainer.strategy.__class__ = DDPStrategy
    check_trainer(trainer, tensor_parallel=1)
