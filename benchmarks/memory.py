"""Peak memory of one forward pass over the weights, each setting in a process of its own."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks.baseline import PlainModel
from benchmarks.measure import MB, Figure, run
from benchmarks.models import workspace
from benchmarks.ours import Bench, BenchOptions, LoadedModel


class Peak(NamedTuple):
    """In MB."""

    total: float
    """The process at its highest; on a GPU the tensors on it."""
    over_weights: float
    """What the forward pass took beside what was there before it."""


@dataclass(frozen=True)
class Options(BenchOptions):
    shape: str = "0.4b"
    """Of the model: tiny, 0.4b, 3b or 8b."""
    num_candidates: Sequence[int] = (4, 8, 12, 26)
    """Values of N."""
    variants: Sequence[str] = ("vanilla", "agd")
    """vanilla, agd, and plain: plain transformers, whose attention maps take 20 GB at N = 26."""
    permutations: int = 1
    """T, the prompts of the batch; plain transformers has one at a time."""
    repeats: int = 3
    """Forward passes per setting, all in one process."""


def memory(options: Options) -> Iterator[Figure]:
    """Peak memory over the weights."""
    with workspace(options.folder) as path:
        for n in options.num_candidates:
            bench = Bench.build(path, options, options.shape, n)
            for variant in options.variants:
                measured = isolated_peaks(bench, variant, options.repeats)
                note = f"process: {max(peak.total for peak in measured):,.0f} MB"
                yield Figure(f"{variant}, N={n}", tuple(peak.over_weights for peak in measured), " MB", note=note)


def isolated_peaks(bench: Bench, variant: str, repeats: int) -> list[Peak]:
    """Measure in a fresh process."""
    # Freed blocks go back at once: the peak is then what was in use, and not what the allocator kept.
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with patch.dict(os.environ, thresholds), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peaks, bench, variant, repeats).result()


def peaks(bench: Bench, variant: str, repeats: int) -> list[Peak]:
    """The peak of each forward pass, after the weights are loaded."""
    work = prepared(bench, variant)
    work()  # weights are mapped from their file, and take memory once they have been used
    return [one_peak(work, bench.options.device) for _ in range(repeats)]


def one_peak(work: Callable[[], Any], device: str) -> Peak:
    before = reset_peak(device)
    work()
    total = peak_so_far(device)
    return Peak(total, total - before)


def prepared(bench: Bench, variant: str) -> Callable[[], Any]:
    """Load what one forward pass needs; returns the pass as a function."""
    if variant == "plain":
        plain = PlainModel(bench)
        return lambda: plain(bench.samples[0], range(bench.num_candidates), bench.annotations.parent)
    loaded = LoadedModel(bench)
    batch = loaded.batch()
    _ = loaded.calibration
    return {"vanilla": lambda: loaded.vanilla(batch), "agd": lambda: loaded.agd(batch)}[variant]


def reset_peak(device: str) -> float:
    """Forget the peak of loading; returns what is in use now, in MB."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MB
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is resident now
    return peak_so_far(device)


def peak_so_far(device: str) -> float:
    """Highest use since the reset, in MB; without Linux since the process began."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / MB
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB


if __name__ == "__main__":
    run(memory)
