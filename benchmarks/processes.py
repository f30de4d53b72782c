"""How many prompts per second ``test`` asks on one process and on several, as the command line runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from benchmarks.measure import Figure, ratios, run
from benchmarks.models import workspace
from benchmarks.ours import Bench
from lad_pl.errors import UserError

SECONDS = "seconds.txt"


class Stopwatch(Callback):
    """Writes down how long the stage took on the first process; loading and placing the model is not part of it."""

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            seconds = time.perf_counter() - self.start
            (Path(trainer.default_root_dir) / SECONDS).write_text(str(seconds))


def processes(
    shape: str = "0.4b",
    num_candidates: int = 4,
    samples: int = 4,
    image_size: int = 336,
    permutations: int = 2,
    count: int = 2,
    threads: int = 1,
    repeats: int = 2,
    dtype: str = "float32",
    device: str = "cpu",
    folder: str | None = None,
) -> list[Figure]:
    """Throughput of ``test`` on one process, on several with a model each, and on several that share one model.

    Args:
        shape: of the model: tiny, 0.4b, 3b or 8b.
        num_candidates: N.
        samples: test samples.
        image_size: side in pixels of every image.
        permutations: T.
        count: processes; needs as many devices, or ``count`` times ``threads`` idle cores.
        threads: of every process.
        repeats: how often everything is measured, in turns.
        dtype: number format of the weights.
        device: cpu or cuda.
        folder: where model and photographs are kept; a temporary one if unset.
    """
    several = [f"--trainer.devices={count}", "--trainer.strategy=ddp"]
    ways = {
        "1 process": ["--trainer.devices=1"],
        f"{count} processes": several,
        f"{count} processes, one model": [*several, f"--model.vlm.tensor_parallel={count}"],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with workspace(folder) as path, TemporaryDirectory(prefix="lad_pl_run_") as temporary:
        bench = Bench.build(path, shape, num_candidates, samples, permutations, dtype, device, image_size)
        runs = Path(temporary)
        command(bench, threads, "fit", "--trainer.devices=1", f"--trainer.default_root_dir={runs / 'fit'}")
        for repeat in range(repeats):
            for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
                taken = seconds(bench, threads, runs, f"{name}-{repeat}", ways[name])
                rates[name].append(samples * permutations / taken)
    single = rates["1 process"]
    return [
        Figure(f"{count} processes / 1 process", ratios(rates[f"{count} processes"], single), at_least=0.9 * count),
        *(Figure(name, tuple(values), " prompts/s", note=f"{threads} threads each") for name, values in rates.items()),
    ]


def seconds(bench: Bench, threads: int, runs: Path, name: str, options: Sequence[str]) -> float:
    """One ``test`` in a run folder of its own."""
    folder = runs / name.replace(" ", "-")
    calibration = f"--ckpt_path={runs / 'fit' / 'calibration.ckpt'}"
    stopwatch = f"--trainer.callbacks+={__spec__.name}.Stopwatch"
    command(bench, threads, "test", *options, calibration, stopwatch, f"--trainer.default_root_dir={folder}")
    return float((folder / SECONDS).read_text())


def command(bench: Bench, threads: int, *arguments: str) -> None:
    """Run lad_pl as a user does.

    Raises:
        UserError: it failed.
    """
    options = [
        f"--model.vlm.path={bench.folder}",
        f"--model.vlm.dtype={bench.dtype}",
        f"--model.prompt.image_size={bench.image_size}",
        f"--data.annotations={bench.annotations}",
        f"--data.num_calibration={bench.num_calibration}",
        f"--data.num_permutations={bench.num_permutations}",
        f"--trainer.accelerator={'gpu' if bench.device.startswith('cuda') else 'cpu'}",
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
