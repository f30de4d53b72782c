"""Two runs of the same prompts, or two readouts of one run: is one better by more than chance?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from lad_pl.analysis.bootstrap import paired_bootstrap
from lad_pl.analysis.comparison import ComparedMethods, Comparison, check_ending, comparison_table, write_comparison
from lad_pl.analysis.matched_runs import Answers, answers_of, matched_answers
from lad_pl.analysis.paired import Paired, rstd_differences
from lad_pl.analysis.stored_run import StoredRun
from lad_pl.errors import UserError
from lad_pl.provenance import flattened


def compare(
    runs: Sequence[str | Path],
    readouts: list[str] | None = None,
    shared: bool = False,
    stage: str = "test",
    out: str | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Say whether one run, or one readout, is better than another by more than chance.

    Two run folders are compared readout by readout, on the prompts that both were asked. Of one run folder, the first
    of ``readouts`` is compared with each of the others.

    Args:
        runs: one or two run folders.
        readouts: readouts, or methods with passes of their own; unset, all that there are.
        shared: compare on the samples that the two runs share, where they do not share all.
        stage: test, or validate.
        out: file for the comparison as well: .md, .csv, .tex or .json.
        draws: how many times the bootstrap draws the samples anew.
        seed: of the draws.

    Raises:
        UserError: the runs were not asked the same prompts, or a readout is not there.
    """
    if stage not in ("test", "validate"):
        raise UserError(f"stage is '{stage}'; choose test or validate.")
    if draws < 1:
        raise UserError(f"draws is {draws}; it must be at least 1.")
    if out is not None:
        check_ending(out)
    comparison = _compared([StoredRun(Path(run), stage) for run in runs], readouts, shared, draws, seed)
    Console().print(comparison_table(comparison))
    if out is not None:
        write_comparison(out, comparison)
        print(f"Comparison: {out}")
    return comparison


def _compared(
    runs: Sequence[StoredRun], readouts: Sequence[str] | None, shared: bool, draws: int, seed: int
) -> Comparison:
    if len(runs) == 1:
        first = second = answers_of(runs[0])
        names = _known(readouts or first.methods, first)
        if len(names) < 2:
            raise UserError("One run is compared with itself by two readouts or more: --readouts '[vanilla, agd]'.")
        pairs = [(names[0], name) for name in names[1:]]
        labels = (names[0], "the readouts below" if len(pairs) > 1 else names[1])
    elif len(runs) == 2:
        first, second = matched_answers(runs[0], runs[1], shared)
        common = [name for name in first.methods if name in second.methods]
        names = _known(readouts or common, first, second)
        if not names:
            raise UserError(f"{runs[0].path} and {runs[1].path} have no readout in common.")
        pairs = [(name, name) for name in names]
        labels = (str(runs[0].path), str(runs[1].path))
    else:
        raise UserError(f"compare takes one or two run folders, not {len(runs)}.")
    return Comparison(
        *labels,
        first.num_samples,
        first.targets.shape[1],
        list(_statistics(first, second, pairs, draws, seed)),
        _differing(first.run, second.run),
    )


def _known(names: Sequence[str], *answers: Answers) -> list[str]:
    for found in answers:
        unknown = [name for name in names if name not in found.methods]
        if unknown:
            raise UserError(f"{found.run.path} has no '{unknown[0]}'; it has {', '.join(found.methods)}.")
    return list(dict.fromkeys(names))


def _differing(first: StoredRun, second: StoredRun) -> dict[str, tuple[Any, Any]]:
    a, b = (flattened({"model": run.report.get("model"), **run.report["settings"]}) for run in (first, second))
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)}


def _statistics(
    first: Answers, second: Answers, pairs: Sequence[tuple[str, str]], draws: int, seed: int
) -> Iterator[ComparedMethods]:
    targets = first.targets
    num_candidates = len(first.records[0]["permutation"])
    right = [(first.choices(a) == targets, second.choices(b) == targets) for a, b in pairs]
    rstd = rstd_differences(right, targets, num_candidates, draws, seed)
    for (name_a, name_b), (a, b), spread in zip(pairs, right, rstd, strict=True):
        same_a, same_b = first.consistent(name_a)[:, None], second.consistent(name_b)[:, None]
        yield ComparedMethods(
            name_b,
            Paired(_share(a), _share(b), paired_bootstrap(b, a, draws, seed)),
            spread,
            Paired(_share(same_a), _share(same_b), paired_bootstrap(same_b, same_a, draws, seed)),
            worse=int((a & ~b).sum()),
            better=int((b & ~a).sum()),
        )


def _share(values: Tensor) -> float:
    return float(values.double().mean())
