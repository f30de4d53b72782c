"""Two machines, played by two launchers on one; and processes that are stopped or die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import DDP, QUIET, check_equal, write_annotations
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lad_pl.cli import main
from lad_pl.evidence.store import read_prompts
from lad_pl.run.processes import ProcessWatcher

NODES = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
GO_ON = "Run the same command again to go on."


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=84",
        f"--data.annotations={write_annotations(tmp_path_factory.mktemp('data'), 8)}",
        "--data.num_calibration=3",
        "--data.num_permutations=3",
        *QUIET,
    ]


@pytest.fixture(scope="module")
def one(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    for command in ("fit", "test"):
        assert main([command, *base, f"--trainer.default_root_dir={folder}"]) == 0
    return folder


def torchrun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    address = [f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    command = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *address, "-m", "lad_pl"]
    return [sys.executable, *command], dict(os.environ)


def srun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """What SLURM's srun sets for a task."""
    job = {"SLURM_JOB_NAME": "lad", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    task = {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": "0", "SLURM_NODELIST": "localhost"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [sys.executable, "-m", "lad_pl"], {**os.environ, **job, **task, **address}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [torchrun, srun])
def test_two_nodes_equal_one_process(base, one: Path, tmp_path: Path, launcher: Callable) -> None:
    shutil.copy(one / "calibration.ckpt", tmp_path)
    port = free_port()
    nodes = []
    for node in range(2):
        command, environment = launcher(node, port)
        options = ["test", *base, *NODES, f"--trainer.default_root_dir={tmp_path}"]
        nodes.append(
            subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        )
    said = [process.communicate(timeout=240) for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], said
    check_equal(tmp_path, one, tolerance=1e-6)


@pytest.mark.slow
def test_one_of_two_processes_is_killed(demo_calibration: Path, tmp_path: Path) -> None:
    """The first reports it and ends. One process alone finishes what both began."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(demo_calibration, tmp_path / name)
    data = ["--data.num_test=150", *QUIET]
    assert main(["test", *data, f"--trainer.default_root_dir={tmp_path / 'one'}"]) == 0
    options = [*data, f"--trainer.default_root_dir={tmp_path / 'two'}"]
    command = [sys.executable, "-m", "lad_pl", "test", *options, *DDP]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not both_write(tmp_path / "two"):
        time.sleep(0.02)
    second = launched_by(first.pid)
    os.kill(second, signal.SIGKILL)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 1, said
    assert "lad_pl: Process 1 of this run has ended (exit code -9)" in said
    assert said.count(GO_ON) == 1
    assert not Path(f"/proc/{second}").exists()
    assert not (tmp_path / "two" / "metrics.json").exists()
    assert stored_bytes(tmp_path / "two") > 18_000
    assert main(["test", *options]) == 0
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stopped", "code", "message"),
    [("first", 143, "Stopped"), ("second", 1, "lad_pl: Process 1 of this run has ended (exit code 143)")],
)
def test_one_of_two_processes_is_terminated(tmp_path: Path, stopped: str, code: int, message: str) -> None:
    """Whichever it is, the run of fit ends with a message, and one process finishes it."""
    options = ["--data.num_calibration=150", f"--trainer.default_root_dir={tmp_path}", *QUIET]
    first = subprocess.Popen([sys.executable, "-m", "lad_pl", "fit", *options, *DDP], stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not both_write(tmp_path):
        time.sleep(0.02)
    second = launched_by(first.pid)
    os.kill(first.pid if stopped == "first" else second, signal.SIGTERM)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == code, said
    assert message in said
    assert said.count(GO_ON) == 1
    assert stopped == "first" or not Path(f"/proc/{second}").exists()
    assert not (tmp_path / "calibration.ckpt").exists()
    assert stored_bytes(tmp_path) > 18_000
    assert main(["fit", *options]) == 0
    assert read_prompts(tmp_path / "calibration_evidence.parquet").sample_index.unique().tolist() == list(range(150))


def test_lightning_does_not_kill_a_process_that_is_about_to_end(tmp_path: Path) -> None:
    """Its observer looks every five seconds; the first process may take longer than the others for its last batch."""
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    other, this = (subprocess.Popen(sleeping) for _ in range(2))
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    launcher.procs = [other]
    observer = _ChildProcessObserver(this.pid, launcher.procs)
    strategy = SimpleNamespace(launcher=launcher, cluster_environment=None)
    processes = ProcessWatcher(SimpleNamespace(strategy=strategy, local_rank=0), tmp_path)
    processes._leave(signal.SIGTERM, None)
    assert other.wait() == -signal.SIGTERM
    assert observer._run()  # it has seen enough
    with pytest.raises(subprocess.TimeoutExpired):
        this.wait(timeout=1)
    this.kill()
    this.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launched_by(pid: int) -> int:
    """The process that is to be the second one, as ddp marks it."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes():
            return child
    raise AssertionError("there is no second process")


def both_write(folder: Path) -> bool:
    """Whether each process has stored some prompts."""
    parts = list(folder.glob("*.parts*/*"))
    return len(parts) == 2 and min(part.stat().st_size for part in parts) > 9000


def stored_bytes(folder: Path) -> int:
    return sum(part.stat().st_size for part in folder.glob("*.parts*/*"))
