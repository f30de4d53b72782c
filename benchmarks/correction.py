"""What the correction costs: the same forward pass with and without reading attention and correcting, in turns.

Attention is read from the last token and from the caption's, whatever the readout; the rows of the caption's tokens are
also measured by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.measure import Clock, Figure, Stopwatch, interleaved, more_than, ratios, run
from benchmarks.memory import isolated_peaks
from benchmarks.models import workspace
from benchmarks.ours import Bench, BenchOptions, LoadedModel
from lad_pl.readouts import READOUTS
from lad_pl.vlm import capture

CAPTION_WORK = ((capture, "_caption_rows"), (capture.AttentionMass, "of_captions"))
"""What it does for the rows of the caption's tokens, but for their sums over the spans."""
OWN_WORK = (
    *((capture, "last_query_attention"), (capture.AttentionMass, "add"), (capture.AttentionMass, "stacked")),
    *CAPTION_WORK,
)
"""What a forward pass does for the correction and for nothing else, up to the readout."""


@dataclass(frozen=True)
class Options(BenchOptions):
    shape: str = "0.4b"
    """Of the model: tiny, 0.4b, 3b or 8b."""
    num_candidates: Sequence[int] = (4, 8, 12)
    """Values of N."""
    permutations: int = 1
    """T, the prompts of the batch."""
    repeats: int = 5
    """How often everything is measured, in turns."""
    memory: bool = True
    """Measure peak memory too, in a process of its own for each setting."""
    clock: Clock = "wall"
    """wall, or cpu: seconds of this process's threads, for a machine that others use too (OMP_NUM_THREADS=1)."""


def correction(options: Options) -> Iterator[Figure]:
    """Time and peak memory of vanilla and of agd, from the same forward pass.

    The paper's own figures for N = 4, 8 and 12 are +18, +12 and +44 % time, and +3, +9 and +20 % memory.
    """
    with workspace(options.folder) as path:
        for n in options.num_candidates:
            bench = Bench.build(path, options, options.shape, n)
            yield from in_time(bench, options.repeats, options.clock)
            if options.memory:
                yield from in_memory(bench, options.repeats)


def in_time(bench: Bench, repeats: int, clock: Clock) -> Iterator[Figure]:
    loaded = LoadedModel(bench)
    batch = loaded.batch()
    stopwatch, of_caption = Stopwatch(clock), Stopwatch(clock)
    readout = stopwatch.around(READOUTS["agd"])
    # On a GPU looking at the clock means waiting for the card, which would itself cost time.
    watched_agd = of_caption.lapped(stopwatch.lapped(lambda: loaded.agd(batch, readout), *OWN_WORK), *CAPTION_WORK)
    variants = {
        "vanilla": lambda: loaded.vanilla(batch),
        "agd": (lambda: loaded.agd(batch)) if bench.on_gpu else watched_agd,
    }
    interleaved(variants, 1)  # warm
    seconds = interleaved(variants, repeats, clock)
    n = bench.num_candidates
    if not bench.on_gpu:
        share, caption = (
            tuple(100 * part for part in ratios(watch.laps[-repeats:], seconds["vanilla"]))
            for watch in (stopwatch, of_caption)
        )
        note = "attention rows, sums over the spans, correction"
        yield Figure(f"agd's own work, share of vanilla's time, N={n}", share, " %", at_most=3.0, note=note)
        yield Figure(f"of it for the caption's rows, N={n}", caption, " %", at_most=3.0)
    yield Figure(f"agd over vanilla, time, N={n}", more_than(seconds["agd"], seconds["vanilla"]), " %", at_most=3.0)
    yield Figure(f"vanilla, N={n}", seconds["vanilla"], " s", note=f"{len(batch)} prompts")


def in_memory(bench: Bench, repeats: int) -> list[Figure]:
    peaks = {name: [peak.total for peak in isolated_peaks(bench, name, repeats)] for name in ("vanilla", "agd")}
    more = more_than(peaks["agd"], peaks["vanilla"])
    n = bench.num_candidates
    return [
        Figure(f"agd over vanilla, peak memory, N={n}", more, " %", at_most=1.0),
        Figure(f"vanilla, peak memory, N={n}", tuple(peaks["vanilla"]), " MB", note="weights and libraries included"),
    ]


if __name__ == "__main__":
    run(correction)
