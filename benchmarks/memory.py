"""Peak memory of one pass over the weights, each setting in a process of its own."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks.measure import MB, Figure, run
from benchmarks.models import workspace
from benchmarks.ours import Bench, Pass


class Peak(NamedTuple):
    """In MB."""

    total: float
    """The process at its highest; on a GPU the tensors on it."""
    over_weights: float
    """What the pass took beside what was there before it."""


def memory(
    shape: str = "0.4b",
    num_candidates: Sequence[int] = (4, 8, 12, 26),
    ways: Sequence[str] = ("vanilla", "agd"),
    image_size: int = 336,
    permutations: int = 1,
    repeats: int = 3,
    dtype: str = "float32",
    device: str = "cpu",
    folder: str | None = None,
) -> Iterator[Figure]:
    """Peak memory over the weights.

    Args:
        shape: of the model: tiny, 0.4b, 3b or 8b.
        num_candidates: values of N.
        ways: vanilla, agd, and plain: the plain way, whose attention maps take 20 GB at N = 26.
        image_size: side in pixels of every image.
        permutations: T, the prompts of the batch; the plain way has one at a time.
        repeats: passes per setting, all in one process.
        dtype: number format of the weights.
        device: cpu or cuda.
        folder: where model and photographs are kept; a temporary one if unset.
    """
    with workspace(folder) as path:
        for n in num_candidates:
            bench = Bench.build(path, shape, n, 1, permutations, dtype, device, image_size)
            for way in ways:
                measured = isolated_peaks(bench, way, repeats)
                note = f"process: {max(peak.total for peak in measured):,.0f} MB"
                yield Figure(f"{way}, N={n}", tuple(peak.over_weights for peak in measured), " MB", note=note)


def isolated_peaks(bench: Bench, way: str, repeats: int) -> list[Peak]:
    """Measure in a fresh process."""
    # Freed blocks go back at once: the peak is then what was in use, and not what the allocator kept.
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with patch.dict(os.environ, thresholds), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peaks, bench, way, repeats).result()


def peaks(bench: Bench, way: str, repeats: int) -> list[Peak]:
    """The peak of each pass, after the weights are loaded."""
    work = prepared(bench, way)
    work()  # weights are mapped from their file, and take memory once they have been used
    return [one_peak(work, bench.device) for _ in range(repeats)]


def one_peak(work: Callable[[], Any], device: str) -> Peak:
    before = reset_peak(device)
    work()
    total = peak_so_far(device)
    return Peak(total, total - before)


def prepared(bench: Bench, way: str) -> Callable[[], Any]:
    """Load what the pass needs, and return the pass."""
    if way == "plain":
        from benchmarks.baseline import PlainModel

        plain = PlainModel(bench.folder, bench.dtype, bench.device, bench.image_size)
        return lambda: plain(bench.samples[0], range(bench.num_candidates), bench.annotations.parent)
    from benchmarks import correction  # which imports this module

    shown = Pass(bench)
    batch = shown.batch()
    pass_ = {"vanilla": correction.vanilla, "agd": correction.agd}[way]
    _ = shown.calibration
    return lambda: pass_(shown, batch)


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
