"""Prompts per second of ``test`` on one process and on several, as the command line runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from benchmarks.measure import Figure, ratios, run
from benchmarks.models import workspace
from benchmarks.ours import Bench, BenchOptions
from lad_pl.errors import UserError

SECONDS = "seconds.txt"


class StageTimer(Callback):
    """Writes down how long the stage took on the first process; loading and placing the model is not part of it."""

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            seconds = time.perf_counter() - self.start
            (Path(trainer.default_root_dir) / SECONDS).write_text(str(seconds))


@dataclass(frozen=True)
class Options(BenchOptions):
    shape: str = "0.4b"
    """Of the model: tiny, 0.4b, 3b or 8b."""
    num_candidates: int = 4
    """N."""
    samples: int = 4
    """Test samples."""
    permutations: int = 2
    """T."""
    count: int = 2
    """Processes; needs as many devices, or count times threads idle cores."""
    threads: int = 1
    """Of every process."""
    repeats: int = 2
    """How often everything is measured, in turns."""


def processes(options: Options) -> list[Figure]:
    """Throughput of ``test`` on one process, on several with a model each, and on several that share one model."""
    count = options.count
    several = [f"--trainer.devices={count}", "--trainer.strategy=ddp"]
    variants = {
        "1 process": ["--trainer.devices=1"],
        f"{count} processes": several,
        f"{count} processes, one model": [*several, f"--model.vlm.tensor_parallel={count}"],
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    with workspace(options.folder) as path, TemporaryDirectory(prefix="lad_pl_run_") as temporary:
        bench = Bench.build(path, options, options.shape, options.num_candidates, options.samples)
        runs = Path(temporary)
        command(bench, options.threads, "fit", "--trainer.devices=1", f"--trainer.default_root_dir={runs / 'fit'}")
        for repeat in range(options.repeats):
            for name in list(variants)[:: 1 if repeat % 2 == 0 else -1]:
                taken = seconds(bench, options.threads, runs, f"{name}-{repeat}", variants[name])
                rates[name].append(options.samples * options.permutations / taken)
    gain = ratios(rates[f"{count} processes"], rates["1 process"])
    note = f"{options.threads} threads each"
    return [
        Figure(f"{count} processes / 1 process", gain, at_least=0.9 * count),
        *(Figure(name, tuple(values), " prompts/s", note=note) for name, values in rates.items()),
    ]


def seconds(bench: Bench, threads: int, runs: Path, name: str, options: Sequence[str]) -> float:
    """One ``test`` in a run folder of its own."""
    folder = runs / name.replace(" ", "-")
    calibration = f"--ckpt_path={runs / 'fit' / 'calibration.ckpt'}"
    timer = f"--trainer.callbacks+={__spec__.name}.StageTimer"
    command(bench, threads, "test", *options, calibration, timer, f"--trainer.default_root_dir={folder}")
    return float((folder / SECONDS).read_text())


def command(bench: Bench, threads: int, *arguments: str) -> None:
    """Run lad_pl as a user does.

    Raises:
        UserError: it failed.
    """
    shared = bench.options
    options = [
        f"--model.vlm.path={bench.folder}",
        f"--model.vlm.dtype={shared.dtype}",
        f"--model.vlm.attn_implementation={shared.attn_implementation}",
        f"--model.prompt.image_size={shared.image_size}",
        f"--data.annotations={bench.annotations}",
        f"--data.num_calibration={bench.num_calibration}",
        f"--data.num_permutations={shared.permutations}",
        f"--trainer.accelerator={'gpu' if bench.on_gpu else 'cpu'}",
        "--trainer.enable_progress_bar=false",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    finished = subprocess.run(
        [sys.executable, "-m", "lad_pl", *arguments, *options], env=environment, capture_output=True, text=True
    )
    if finished.returncode:
        raise UserError(f"lad_pl {arguments[0]} failed: {finished.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    run(processes)
