"""A GPU's figures in one call: prompts per second of vanilla, of agd, of ``test`` and of plain transformers, time of
vision tower and language model, the share of the card's own matrix rate that they reach, and peak memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils.memory import clear_device_cache
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.against_plain import FASTER, PlainRun
from benchmarks.baseline import PlainModel
from benchmarks.measure import Figure, Seconds, interleaved, more_than, ratios, run, timed
from benchmarks.memory import one_peak
from benchmarks.models import workspace
from benchmarks.ours import Bench, BenchOptions, LoadedModel, Test
from lad_pl import UserError
from lad_pl.types import Batch


@dataclass(frozen=True)
class Options(BenchOptions):
    shapes: Sequence[str] = ("3b", "8b")
    """Of the models: tiny, 0.4b, 3b or 8b."""
    num_candidates: Sequence[int] = (4, 8, 12)
    """Values of N."""
    samples: int = 32
    """Test samples."""
    batch_size: int = 2
    """Samples per batch; their T prompts go through the model together."""
    num_workers: int = 8
    """data.num_workers."""
    plain_prompts: int = 5
    """How many prompts plain transformers is timed on in each repeat."""
    repeats: int = 3
    """How often ``test`` and plain transformers are measured, in turns."""
    pass_repeats: int = 10
    """How often single forward passes are, which are short."""
    dtype: str = "bfloat16"
    """Number format of the weights."""
    device: str = "cuda"
    """cuda."""
    figures: str | None = None
    """A file to which every figure is appended as soon as it is measured, as a line of JSON with all its repeats."""


def gpu(options: Options) -> Iterator[Figure]:
    """The table for one card; needs room for two copies of the largest model, 25 GB of disk, and a few minutes."""
    for figure in measured(options):
        if options.figures is not None:
            with open(options.figures, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(figure)) + "\n")
        yield figure


def measured(options: Options) -> Iterator[Figure]:
    dtype, device = options.dtype, options.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU here; nothing was run.")
    rate = matrix_rate(dtype, device, size=8192 if device.startswith("cuda") else 512)
    yield Figure(f"matrix rate in {dtype}", (rate / 1e12,), " TFLOP/s")
    with workspace(options.folder) as path:
        for shape in options.shapes:
            benches = [Bench.build(path, options, shape, n, options.samples) for n in options.num_candidates]
            yield from one_pass(benches, shape, options, rate)
            clear_device_cache(garbage_collection=True)  # the next model should find the card empty
            yield from whole_test(benches, shape, options)
            clear_device_cache(garbage_collection=True)


def one_pass(benches: Sequence[Bench], shape: str, options: Options, rate: float) -> Iterator[Figure]:
    """One forward pass, batches at hand: vanilla beside agd, and its two halves."""
    vlm = None
    for bench in benches:
        loaded = LoadedModel(bench, vlm)
        vlm, batch = loaded.vlm, loaded.batch(0, options.batch_size)
        parts = Parts(loaded, batch)
        variants = {"vanilla": lambda: loaded.vanilla(batch), "agd": lambda: loaded.agd(batch)}  # noqa: B023
        halves = {"tower": parts.tower, "apart": one_by_one(parts.tower), "language": parts.language}
        interleaved(variants | halves, 1)  # warm
        seconds = interleaved(variants | halves, options.pass_repeats)
        at = f"{shape}, N={bench.num_candidates}"
        yield from (Figure(f"{at}: {name}", per_second(len(batch), seconds[name]), " prompts/s") for name in variants)
        yield Figure(f"{at}: agd over vanilla", more_than(seconds["agd"], seconds["vanilla"]), " %", at_most=2.0)
        yield Figure(f"{at}: vision tower", milliseconds(seconds["tower"]), " ms", note=f"{parts.images} images")
        yield Figure(f"{at}: vision tower, window by window", milliseconds(seconds["apart"]), " ms")
        yield Figure(f"{at}: language model", milliseconds(seconds["language"]), " ms", note=f"{len(batch)} prompts")
        joined, by_window = (share(seconds[name], seconds["language"]) for name in ("tower", "apart"))
        yield Figure(f"{at}: vision tower's share of the time", joined, " %")
        yield Figure(f"{at}: vision tower's share, window by window", by_window, " %")
        yield Figure(f"{at}: features, largest difference window by window", (parts.largest_difference(),), " std")
        work = {"tower": flops(parts.tower), "language": flops(parts.language)}
        work["agd"] = sum(work.values())
        for name, what in {"agd": "agd", "tower": "vision tower", "language": "language model"}.items():
            reached = tuple(100 * work[name] / second / rate for second in seconds[name])
            note = f"{work[name] / 1e12:.3g} TFLOP"
            yield Figure(f"{at}: share of the matrix rate, {what}", reached, " %", note=note)
        if bench.on_gpu:
            peaks = {name: one_peak(variant, options.device) for name, variant in variants.items()}
            note = f"{peaks['agd'].total:,.0f} MB with the weights"
            yield Figure(f"{at}: peak memory over the weights, agd", (peaks["agd"].over_weights,), " MB", note=note)
            more = more_than((peaks["agd"].total,), (peaks["vanilla"].total,))
            yield Figure(f"{at}: agd over vanilla, peak memory", more, " %", at_most=1.0)


class Parts:
    """The two halves of a batch's forward pass."""

    def __init__(self, loaded: LoadedModel, batch: Batch) -> None:
        self.loaded = loaded
        self.batch = batch
        self.encoded = loaded.vlm.with_features(batch)
        self.images = len(batch.visual_tokens)

    def tower(self) -> Batch:
        """Every distinct image through the vision tower."""
        return self.loaded.vlm.with_features(self.batch)

    def language(self) -> Any:
        """The prompts through the language model, attention captured."""
        return self.loaded.evidence(self.encoded)

    def largest_difference(self) -> float:
        """Between the features with joined windows and those window by window, in their standard deviation."""
        joined, apart = (self._features(encode()) for encode in (self.tower, one_by_one(self.tower)))
        return float((joined - apart).abs().max() / apart.std())

    def _features(self, batch: Batch) -> torch.Tensor:
        shown = batch.features.shown(range(self.images)).pooler_output
        return (shown if isinstance(shown, torch.Tensor) else torch.cat(shown)).double()


def one_by_one(work: Callable[[], Any]) -> Callable[[], Any]:
    """The work with vision towers that attend window by window, as transformers' do by themselves."""

    def apart() -> Any:
        with patch("lad_pl.vlm.model.joined_sequences", lambda modules: nullcontext()):
            return work()

    return apart


def whole_test(benches: Sequence[Bench], shape: str, options: Options) -> Iterator[Figure]:
    """``test`` with decoding, encoding and files, beside plain transformers."""
    plain_model = PlainModel(benches[0])
    module = None
    for bench in benches:
        at = f"{shape}, N={bench.num_candidates}"
        test = Test(bench, options.batch_size, options.num_workers, module)
        module = test.module
        plain, lean = (PlainRun(bench, options.plain_prompts, plain_model, one_pass) for one_pass in (False, True))
        calls: dict[str, int] = {}
        joined, by_window = counted(test, test, calls, "test"), counted(test, one_by_one(test), calls, "apart")
        variants = {"test": joined, "apart": by_window, "plain": plain, "lean": lean}
        interleaved(variants, 1)  # warm
        seconds: Seconds = interleaved(variants, options.repeats)
        prompts = options.samples * options.permutations
        ours, apart = (per_second(prompts, seconds[name]) for name in ("test", "apart"))
        theirs, leaner = (per_second(plain.num_prompts, seconds[name]) for name in ("plain", "lean"))
        yield Figure(f"{at}: test", ours, " prompts/s", note=f"{prompts} prompts")
        yield Figure(f"{at}: test, window by window", apart, " prompts/s")
        yield Figure(f"{at}: plain transformers", theirs, " prompts/s", note=f"{plain.num_prompts} prompts")
        yield Figure(f"{at}: plain transformers in one pass", leaner, " prompts/s")
        yield Figure(f"{at}: times as fast", ratios(ours, theirs), at_least=FASTER.get(bench.num_candidates))
        yield Figure(f"{at}: times as fast as one pass of plain transformers", ratios(ours, leaner))
        # Half precision rounds in both, and random weights leave many decisions near a tie: no figure is called for.
        differing = float(sum(script.differences(test, calls["test"]) for script in (plain, lean)))
        yield Figure(f"{at}: decisions that differ from plain transformers", (differing,), note=plain.compared(lean))
        choices, others = (test.choices(calls[name]) for name in ("test", "apart"))
        changed = [choices[key][name] != others[key][name] for key in choices for name in choices[key]]
        note = f"of {len(changed)}, all readouts"
        yield Figure(f"{at}: decisions that differ window by window", (float(sum(changed)),), note=note)


def counted(test: Test, work: Callable[[], Any], calls: dict[str, int], name: str) -> Callable[[], None]:
    """The work, after which ``calls`` has the number of its ``test``."""

    def run_counted() -> None:
        work()
        calls[name] = test.calls

    return run_counted


def per_second(prompts: int, seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(prompts / second for second in seconds)


def milliseconds(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(1000 * second for second in seconds)


def share(part: Sequence[float], rest: Sequence[float]) -> tuple[float, ...]:
    """In percent, repeat by repeat."""
    return tuple(100 * a / (a + b) for a, b in zip(part, rest, strict=True))


def flops(work: Callable[[], Any]) -> int:
    """Multiplications and additions of its matrix products; attention counts in full, not its half."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(dtype: str, device: str, size: int) -> float:
    """Operations per second of a square matrix product, the best of several."""
    left, right = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    repeats = 20

    def products() -> None:
        for _ in range(repeats):
            left @ right

    products()
    return 2 * size**3 * repeats / min(timed(products) for _ in range(3))


if __name__ == "__main__":
    run(gpu)
