"""A GPU's figures in one call: prompts per second of vanilla, of agd, of ``test`` and of the plain way, the share of
the card's own matrix rate that the pass reaches, and peak memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from accelerate.utils.memory import clear_device_cache
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.against_plain import FASTER, PlainRun
from benchmarks.baseline import PlainModel
from benchmarks.correction import agd, vanilla
from benchmarks.measure import Figure, Seconds, interleaved, more_than, ratios, run, timed
from benchmarks.memory import one_peak
from benchmarks.models import workspace
from benchmarks.ours import Bench, Pass, Test
from lad_pl import UserError
from lad_pl.types import Batch


def gpu(
    shapes: Sequence[str] = ("3b", "8b"),
    num_candidates: Sequence[int] = (4, 8, 12),
    samples: int = 16,
    image_size: int = 336,
    permutations: int = 5,
    batch_size: int = 2,
    num_workers: int = 4,
    plain_prompts: int = 5,
    repeats: int = 3,
    pass_repeats: int = 10,
    attn_implementation: str = "sdpa",
    dtype: str = "bfloat16",
    device: str = "cuda",
    folder: str | None = None,
) -> Iterator[Figure]:
    """The table for one card; needs room for two copies of the largest model, 25 GB of disk, and a few minutes.

    Args:
        shapes: of the models: tiny, 0.4b, 3b or 8b.
        num_candidates: values of N.
        samples: test samples.
        image_size: side in pixels of every image.
        permutations: T.
        batch_size: samples per batch; their T prompts go through the model together.
        num_workers: data.num_workers.
        plain_prompts: how many prompts the plain way is timed on in each repeat.
        repeats: how often ``test`` and the plain way are measured, in turns.
        pass_repeats: how often single passes are, which are short.
        attn_implementation: sdpa, flash_attention_2 or flash_attention_3; the plain way is eager.
        dtype: number format of the weights.
        device: cuda.
        folder: where models and photographs are kept; a temporary one if unset.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU here; nothing was run.")
    rate = matrix_rate(dtype, device, size=8192 if device.startswith("cuda") else 512)
    yield Figure(f"matrix rate in {dtype}", (rate / 1e12,), " TFLOP/s")
    with workspace(folder) as path:
        for shape in shapes:
            benches = [
                Bench.build(path, shape, n, samples, permutations, dtype, device, image_size, attn_implementation)
                for n in num_candidates
            ]
            yield from one_pass(benches, shape, batch_size, pass_repeats, rate)
            clear_device_cache(garbage_collection=True)  # the next model should find the card empty
            yield from whole_test(benches, shape, batch_size, num_workers, plain_prompts, repeats)
            clear_device_cache(garbage_collection=True)


def one_pass(benches: Sequence[Bench], shape: str, batch_size: int, repeats: int, rate: float) -> Iterator[Figure]:
    """The model's pass, batches at hand: vanilla beside agd."""
    vlm = benches[0].load()
    for bench in benches:
        shown = Pass(bench, vlm=vlm)
        batch = shown.batch(0, batch_size)
        ways = {"vanilla": lambda: vanilla(shown, batch), "agd": lambda: agd(shown, batch)}  # noqa: B023 (called here)
        interleaved(ways, 1)  # warm
        seconds = interleaved(ways, repeats)
        at = f"{shape}, N={bench.num_candidates}"
        yield from (Figure(f"{at}: {way}", per_second(len(batch), seconds[way]), " prompts/s") for way in ways)
        yield Figure(f"{at}: agd over vanilla", more_than(seconds["agd"], seconds["vanilla"]), " %", at_most=2.0)
        share = tuple(100 * flops(shown, batch) / second / rate for second in seconds["agd"])
        yield Figure(f"{at}: share of the matrix rate, agd", share, " %")
        if bench.device.startswith("cuda"):
            peaks = {way: one_peak(work, bench.device) for way, work in ways.items()}
            note = f"{peaks['agd'].total:,.0f} MB with the weights"
            yield Figure(f"{at}: peak memory over the weights, agd", (peaks["agd"].over_weights,), " MB", note=note)
            more = more_than((peaks["agd"].total,), (peaks["vanilla"].total,))
            yield Figure(f"{at}: agd over vanilla, peak memory", more, " %", at_most=1.0)


def whole_test(
    benches: Sequence[Bench],
    shape: str,
    batch_size: int,
    num_workers: int,
    plain_prompts: int,
    repeats: int,
) -> Iterator[Figure]:
    """``test`` with decoding, encoding and files, beside the plain way."""
    first = benches[0]
    plain_model = PlainModel(first.folder, first.dtype, first.device, first.image_size)
    module = None
    for bench in benches:
        n = bench.num_candidates
        test = Test(bench, batch_size, num_workers, module)
        module = test.module
        plain = PlainRun(bench, plain_prompts, plain_model)
        interleaved({"test": test, "plain": plain}, 1)  # warm
        seconds: Seconds = interleaved({"test": test, "plain": plain}, repeats)
        ours = per_second(len(bench.samples) * bench.num_permutations, seconds["test"])
        theirs = per_second(plain.num_prompts, seconds["plain"])
        yield Figure(f"{shape}, N={n}: test", ours, " prompts/s")
        yield Figure(f"{shape}, N={n}: plain way", theirs, " prompts/s")
        yield Figure(f"{shape}, N={n}: times as fast", ratios(ours, theirs), at_least=FASTER.get(n))
        # Half precision rounds either way, and random weights leave many decisions near a tie: told, not demanded.
        differing = float(plain.differences(test))
        yield Figure(f"{shape}, N={n}: decisions that differ", (differing,), note=plain.compared())


def per_second(prompts: int, seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(prompts / second for second in seconds)


def flops(shown: Pass, batch: Batch) -> int:
    """Multiplications and additions of the matrix products of one pass; attention counts in full, not its half."""
    with FlopCounterMode(display=False) as counter:
        vanilla(shown, batch)
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
