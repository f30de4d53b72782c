"""A GPU's figures in one call: prompts per second of vanilla, of agd, of ``test`` and of plain transformers, the
share of the card's own matrix rate that the forward pass reaches, and peak memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    samples: int = 16
    """Test samples."""
    batch_size: int = 2
    """Samples per batch; their T prompts go through the model together."""
    num_workers: int = 4
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


def gpu(options: Options) -> Iterator[Figure]:
    """The table for one card; needs room for two copies of the largest model, 25 GB of disk, and a few minutes."""
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
    """One forward pass, batches at hand: vanilla beside agd."""
    vlm = None
    for bench in benches:
        loaded = LoadedModel(bench, vlm)
        vlm, batch = loaded.vlm, loaded.batch(0, options.batch_size)
        variants = {"vanilla": lambda: loaded.vanilla(batch), "agd": lambda: loaded.agd(batch)}  # noqa: B023
        interleaved(variants, 1)  # warm
        seconds = interleaved(variants, options.pass_repeats)
        at = f"{shape}, N={bench.num_candidates}"
        yield from (Figure(f"{at}: {name}", per_second(len(batch), seconds[name]), " prompts/s") for name in variants)
        yield Figure(f"{at}: agd over vanilla", more_than(seconds["agd"], seconds["vanilla"]), " %", at_most=2.0)
        share = tuple(100 * flops(loaded, batch) / second / rate for second in seconds["agd"])
        yield Figure(f"{at}: share of the matrix rate, agd", share, " %")
        if bench.on_gpu:
            peaks = {name: one_peak(work, options.device) for name, work in variants.items()}
            note = f"{peaks['agd'].total:,.0f} MB with the weights"
            yield Figure(f"{at}: peak memory over the weights, agd", (peaks["agd"].over_weights,), " MB", note=note)
            more = more_than((peaks["agd"].total,), (peaks["vanilla"].total,))
            yield Figure(f"{at}: agd over vanilla, peak memory", more, " %", at_most=1.0)


def whole_test(benches: Sequence[Bench], shape: str, options: Options) -> Iterator[Figure]:
    """``test`` with decoding, encoding and files, beside plain transformers."""
    plain_model = PlainModel(benches[0])
    module = None
    for bench in benches:
        n = bench.num_candidates
        test = Test(bench, options.batch_size, options.num_workers, module)
        module = test.module
        plain = PlainRun(bench, options.plain_prompts, plain_model)
        interleaved({"test": test, "plain": plain}, 1)  # warm
        seconds: Seconds = interleaved({"test": test, "plain": plain}, options.repeats)
        ours = per_second(options.samples * options.permutations, seconds["test"])
        theirs = per_second(plain.num_prompts, seconds["plain"])
        yield Figure(f"{shape}, N={n}: test", ours, " prompts/s")
        yield Figure(f"{shape}, N={n}: plain transformers", theirs, " prompts/s")
        yield Figure(f"{shape}, N={n}: times as fast", ratios(ours, theirs), at_least=FASTER.get(n))
        # Half precision rounds in both, and random weights leave many decisions near a tie: no figure is called for.
        differing = float(plain.differences(test))
        yield Figure(f"{shape}, N={n}: decisions that differ", (differing,), note=plain.compared())


def per_second(prompts: int, seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(prompts / second for second in seconds)


def flops(loaded: LoadedModel, batch: Batch) -> int:
    """Multiplications and additions of one forward pass's matrix products; attention counts in full, not its half."""
    with FlopCounterMode(display=False) as counter:
        loaded.vanilla(batch)
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
