"""How much faster than plain transformers (``benchmarks/baseline.py``), with equal decisions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

from benchmarks.baseline import PlainModel, decisions
from benchmarks.measure import Figure, interleaved, ratios, run
from benchmarks.models import workspace
from benchmarks.ours import SEVEN_READOUTS, Bench, BenchOptions, Test
from lad_pl.data.permutations import Permutation, random_permutations
from lad_pl.types import Evidence, Sample

FASTER = {4: 3.0, 12: 4.0}
"""How many times as fast is called for, by N."""


@dataclass(frozen=True)
class Options(BenchOptions):
    shape: str = "0.4b"
    """Of the model: tiny, 0.4b, 3b or 8b."""
    num_candidates: int = 4
    """N."""
    samples: int = 1
    """Test samples."""
    plain_prompts: int | None = None
    """How many prompts plain transformers is timed on in each repeat; all of them if unset."""
    batch_size: int = 1
    """Samples per batch, ours."""
    num_workers: int = 1
    """data.num_workers, ours."""


def against_plain(options: Options) -> list[Figure]:
    """Seconds per prompt of ``test`` and of plain transformers.

    N = 12 takes half an hour on two cores; ``--plain_prompts 1`` times a single prompt per repeat of plain
    transformers, whose prompts all cost the same.
    """
    n = options.num_candidates
    with workspace(options.folder) as path:
        bench = Bench.build(path, options, options.shape, n, options.samples)
        test = Test(bench, options.batch_size, options.num_workers)
        model = PlainModel(bench)
        plain, lean = (PlainRun(bench, options.plain_prompts, model, single_pass) for single_pass in (False, True))
        test()  # warm
        seconds = interleaved({"test": test, "plain": plain, "lean": lean}, options.repeats)
        apart = plain.differences(test) + lean.differences(test)
    ours = tuple(value / (options.samples * options.permutations) for value in seconds["test"])
    theirs = tuple(value / plain.num_prompts for value in seconds["plain"])
    leaner = tuple(value / plain.num_prompts for value in seconds["lean"])
    return [
        Figure(f"times as fast, N={n}", ratios(theirs, ours), at_least=FASTER.get(n)),
        Figure("times as fast as one pass of plain transformers", ratios(leaner, ours), note="evidence from generate"),
        Figure("decisions that differ", (float(apart),), at_most=0, note=plain.compared(lean)),
        Figure("test, per prompt", ours, " s"),
        Figure("plain transformers, per prompt", theirs, " s"),
        Figure("plain transformers in one pass, per prompt", leaner, " s"),
    ]


class PlainRun:
    """Plain transformers over the same samples and permutations; every call goes on with the next prompts."""

    def __init__(self, bench: Bench, num_prompts: int | None, model: PlainModel, single_pass: bool = False) -> None:
        self.model = model
        self.single_pass = single_pass
        self.photos = bench.annotations.parent
        orders = random_permutations(bench.num_candidates, bench.options.permutations)
        prompts = [(sample, order) for sample in bench.samples for order in orders]
        self.num_prompts = min(num_prompts or len(prompts), len(prompts))
        self.upcoming = cycle(prompts)
        self.evidence: dict[tuple[str, Permutation], Evidence] = {}

    def __call__(self) -> None:
        for _ in range(self.num_prompts):
            sample, order = next(self.upcoming)
            self.evidence[key(sample, order)] = self.model(sample, order, self.photos, self.single_pass)[1]

    def differences(self, test: Test, call: int | None = None) -> int:
        """How many decisions of any readout are not those of ``test``, of a call or of the latest."""
        calibration, ours = test.calibration(), test.choices(call)
        theirs = {key: decisions(evidence, calibration, SEVEN_READOUTS) for key, evidence in self.evidence.items()}
        return sum(theirs[key][name] != ours[key][name] for key in theirs for name in SEVEN_READOUTS)

    def compared(self, *others: PlainRun) -> str:
        prompts = sum(len(run.evidence) for run in (self, *others))
        return f"of {prompts * len(SEVEN_READOUTS)}, all readouts"


def key(sample: Sample, order: Permutation) -> tuple[str, Permutation]:
    return sample.id, tuple(order)


if __name__ == "__main__":
    run(against_plain)
