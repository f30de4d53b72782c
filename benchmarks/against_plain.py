"""How much faster than the plain way (``benchmarks/baseline.py``), with equal decisions."""

from __future__ import annotations

from itertools import cycle

from benchmarks.baseline import PlainModel, decisions
from benchmarks.measure import Figure, interleaved, ratios, run
from benchmarks.models import workspace
from benchmarks.ours import SEVEN_READOUTS, Bench, Test
from lad_pl.data.permutations import Permutation, random_permutations
from lad_pl.types import Evidence, Sample

FASTER = {4: 3.0, 12: 4.0}
"""How many times as fast is called for, by N."""


def against_plain(
    shape: str = "0.4b",
    num_candidates: int = 4,
    samples: int = 1,
    image_size: int = 336,
    permutations: int = 5,
    plain_prompts: int | None = None,
    batch_size: int = 1,
    num_workers: int = 1,
    repeats: int = 3,
    dtype: str = "float32",
    device: str = "cpu",
    folder: str | None = None,
) -> list[Figure]:
    """Seconds per prompt of ``test`` and of the plain way.

    N = 12 takes half an hour on two cores; ``--plain_prompts 1`` times a single prompt per repeat of the plain way,
    whose prompts all cost the same.

    Args:
        shape: of the model: tiny, 0.4b, 3b or 8b.
        num_candidates: N.
        samples: test samples.
        image_size: side in pixels of every image.
        permutations: T.
        plain_prompts: how many prompts the plain way is timed on in each repeat; all of them if unset.
        batch_size: samples per batch, ours.
        num_workers: data.num_workers, ours.
        repeats: how often everything is measured, in turns.
        dtype: number format of the weights.
        device: cpu or cuda.
        folder: where model and photographs are kept; a temporary one if unset.
    """
    with workspace(folder) as path:
        bench = Bench.build(path, shape, num_candidates, samples, permutations, dtype, device, image_size)
        test = Test(bench, batch_size, num_workers)
        model = PlainModel(bench.folder, bench.dtype, bench.device, image_size)
        plain, lean = (PlainRun(bench, plain_prompts, model, single_pass=single) for single in (False, True))
        test()  # warm
        seconds = interleaved({"test": test, "plain": plain, "lean": lean}, repeats)
        apart = plain.differences(test) + lean.differences(test)
    ours = tuple(value / (samples * permutations) for value in seconds["test"])
    theirs = tuple(value / plain.num_prompts for value in seconds["plain"])
    leaner = tuple(value / plain.num_prompts for value in seconds["lean"])
    return [
        Figure(f"times as fast, N={num_candidates}", ratios(theirs, ours), at_least=FASTER.get(num_candidates)),
        Figure("times as fast as the lean plain way", ratios(leaner, ours), note="evidence read out of generate"),
        Figure("decisions that differ", (float(apart),), at_most=0, note=plain.compared(lean)),
        Figure("test, per prompt", ours, " s"),
        Figure("plain way, per prompt", theirs, " s"),
        Figure("lean plain way, per prompt", leaner, " s"),
    ]


class PlainRun:
    """The plain way over the same samples and permutations; every call goes on with the next prompts."""

    def __init__(self, bench: Bench, num_prompts: int | None, model: PlainModel, single_pass: bool = False) -> None:
        self.model = model
        self.single_pass = single_pass
        self.photos = bench.annotations.parent
        orders = random_permutations(bench.num_candidates, bench.num_permutations)
        prompts = [(sample, order) for sample in bench.samples for order in orders]
        self.num_prompts = min(num_prompts or len(prompts), len(prompts))
        self.upcoming = cycle(prompts)
        self.evidence: dict[tuple[str, Permutation], Evidence] = {}

    def __call__(self) -> None:
        for _ in range(self.num_prompts):
            sample, order = next(self.upcoming)
            self.evidence[key(sample, order)] = self.model(sample, order, self.photos, self.single_pass)[1]

    def differences(self, test: Test) -> int:
        """How many decisions of any readout are not those of ``test``."""
        calibration, ours = test.calibration(), test.choices()
        theirs = {key: decisions(evidence, calibration, SEVEN_READOUTS) for key, evidence in self.evidence.items()}
        return sum(theirs[key][name] != ours[key][name] for key in theirs for name in SEVEN_READOUTS)

    def compared(self, *others: PlainRun) -> str:
        prompts = sum(len(run.evidence) for run in (self, *others))
        return f"of {prompts * len(SEVEN_READOUTS)}, all readouts"


def key(sample: Sample, order: Permutation) -> tuple[str, Permutation]:
    return sample.id, tuple(order)


if __name__ == "__main__":
    run(against_plain)
