"""What the correction costs: the same pass with and without reading attention and correcting, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.measure import Clock, Figure, Stopwatch, interleaved, more_than, ratios, run
from benchmarks.memory import isolated_peaks
from benchmarks.models import workspace
from benchmarks.ours import SETTINGS, Bench, Pass
from lad_pl.readouts import READOUTS
from lad_pl.types import Batch
from lad_pl.vlm import capture

OWN_WORK = ((capture, "last_query_attention"), (capture.AttentionMass, "add"), (capture.AttentionMass, "stacked"))
"""What a pass does for the correction and for nothing else, up to the readout."""


def correction(
    shape: str = "0.4b",
    num_candidates: Sequence[int] = (4, 8, 12),
    image_size: int = 336,
    permutations: int = 1,
    attn_implementation: str = "sdpa",
    repeats: int = 5,
    memory: bool = True,
    clock: Clock = "wall",
    dtype: str = "float32",
    device: str = "cpu",
    folder: str | None = None,
) -> Iterator[Figure]:
    """Time and peak memory of vanilla and of agd, from the same forward pass.

    The paper's own figures for N = 4, 8 and 12 are +18, +12 and +44 % time, and +3, +9 and +20 % memory.

    Args:
        shape: of the model: tiny, 0.4b, 3b or 8b.
        num_candidates: values of N.
        image_size: side in pixels of every image.
        permutations: T, the prompts of the batch.
        attn_implementation: sdpa or flash_attention_2.
        repeats: how often everything is measured, in turns.
        memory: measure peak memory too, in a process of its own for each setting.
        dtype: number format of the weights.
        device: cpu or cuda.
        folder: where model and photographs are kept; a temporary one if unset.
    """
    with workspace(folder) as path:
        for n in num_candidates:
            bench = Bench.build(path, shape, n, 1, permutations, dtype, device, image_size, attn_implementation)
            yield from in_time(bench, repeats, clock)
            if memory:
                yield from in_memory(bench, repeats)


def in_time(bench: Bench, repeats: int, clock: Clock) -> Iterator[Figure]:
    shown = Pass(bench)
    batch = shown.batch()
    stopwatch = Stopwatch(clock)
    readout = stopwatch.around(READOUTS["agd"])
    watched_agd = stopwatch.lapped(lambda: corrected(readout, shown, batch), *OWN_WORK)
    # On a GPU looking at the clock means waiting for the card, which would itself cost time.
    watch = bench.device == "cpu"
    ways = {"vanilla": lambda: vanilla(shown, batch), "agd": watched_agd if watch else lambda: agd(shown, batch)}
    interleaved(ways, 1)  # warm
    seconds = interleaved(ways, repeats, clock)
    n = bench.num_candidates
    if watch:
        share = tuple(100 * part for part in ratios(stopwatch.laps[-repeats:], seconds["vanilla"]))
        note = "attention rows, sums over the spans, correction"
        yield Figure(f"agd's own work, share of vanilla's time, N={n}", share, " %", at_most=2.0, note=note)
    yield Figure(f"agd over vanilla, time, N={n}", more_than(seconds["agd"], seconds["vanilla"]), " %", at_most=2.0)
    yield Figure(f"vanilla, N={n}", seconds["vanilla"], " s", note=f"{len(batch)} prompts")


def in_memory(bench: Bench, repeats: int) -> list[Figure]:
    peaks = {way: [peak.total for peak in isolated_peaks(bench, way, repeats)] for way in ("vanilla", "agd")}
    more = more_than(peaks["agd"], peaks["vanilla"])
    n = bench.num_candidates
    return [
        Figure(f"agd over vanilla, peak memory, N={n}", more, " %", at_most=1.0),
        Figure(f"vanilla, peak memory, N={n}", tuple(peaks["vanilla"]), " MB", note="weights and libraries included"),
    ]


def agd(shown: Pass, batch: Batch) -> torch.Tensor:
    """Evidence with attention, and the corrected scores."""
    return corrected(READOUTS["agd"], shown, batch)


def corrected(readout: Callable[..., torch.Tensor], shown: Pass, batch: Batch) -> torch.Tensor:
    return readout(shown.evidence(batch).cpu(), shown.calibration, SETTINGS)


def vanilla(shown: Pass, batch: Batch) -> torch.Tensor:
    """The same pass, with nothing watched: the candidates' log-probabilities."""
    with patch("lad_pl.vlm.model.capture", nothing_captured):
        evidence = shown.evidence(batch).cpu()
    assert not evidence.attention.any(), "attention was captured all the same"
    return READOUTS["vanilla"](evidence, shown.calibration, SETTINGS)


@contextmanager
def nothing_captured(*args: Any, **kwargs: Any) -> Iterator[Any]:
    """Stands in for :func:`lad_pl.vlm.capture.capture`."""

    class Nothing:
        def stacked(self) -> torch.Tensor:
            return torch.zeros(1, 1, 1, 1)

    yield Nothing()


if __name__ == "__main__":
    run(correction)
