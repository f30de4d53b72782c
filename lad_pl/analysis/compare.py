"""Two runs of the same prompts, or two readouts of one run: is one better by more than chance?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lad_pl.analysis.bootstrap import Paired, mcnemar, paired_bootstrap, rstd_differences
from lad_pl.analysis.matched_runs import Answers, answers_of, matched_answers
from lad_pl.analysis.stored_run import StoredRun
from lad_pl.analysis.table import WrittenTable
from lad_pl.errors import UserError
from lad_pl.files import atomic_write
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


STATISTICS = ("accuracy", "rstd", "consistency")


_NOTE = (
    "In %. B - A: with its 95 % interval and p, from a paired bootstrap over samples.\n"
    "worse: prompts that A has right and B wrong; better: the reverse. McNemar: p of\n"
    "the exact test on these, which takes a sample's permutations for independent."
)


@dataclass(frozen=True)
class ComparedMethods:
    """A's answers by one readout (or method) against B's by the same or another."""

    name: str
    accuracy: Paired
    rstd: Paired
    consistency: Paired
    worse: int
    """Prompts that A has right and B wrong."""
    better: int
    """Prompts that A has wrong and B right."""

    @property
    def flips_p(self) -> float:
        """McNemar's exact test on the two counts; see :func:`lad_pl.analysis.bootstrap.mcnemar`."""
        return mcnemar(self.worse, self.better)

    def record(self) -> dict[str, Any]:
        """Plain numbers: shares, not percent; None where there is no number."""
        record: dict[str, Any] = {"readout": self.name}
        for name in STATISTICS:
            paired: Paired = getattr(self, name)
            found = paired.difference
            record |= {f"{name}_a": paired.a, f"{name}_b": paired.b, f"{name}_difference": found.mean}
            record |= {f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": found.p}
        record |= {"worse": self.worse, "better": self.better, "flips_p": self.flips_p}
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in record.items()}


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what came of it."""

    a: str
    b: str
    num_samples: int
    num_permutations: int
    methods: Sequence[ComparedMethods]
    settings: dict[str, tuple[Any, Any]]
    """The settings in which the runs differ, by their dotted names."""


def comparison_table(comparison: Comparison) -> Group:
    """One row per readout and statistic, in percent, and the settings in which the runs differ."""
    shown = f"{comparison.num_samples} samples x {comparison.num_permutations} permutations"
    parts: list[Any] = [Text(f"A: {comparison.a}\nB: {comparison.b}\n{shown}", "bold"), *_parts(comparison)]
    parts.append(Text(_NOTE, "dim"))
    if comparison.settings:
        parts.append(Text("\nThe runs differ in", "bold"))
        parts += [Text(f"{name}: A {_short(a)}, B {_short(b)}") for name, (a, b) in comparison.settings.items()]
    return Group(*parts)


def _parts(comparison: Comparison) -> Iterator[Any]:
    for name in STATISTICS:
        table = _table("RStd" if name == "rstd" else name, "A", "B", "B - A", "p")
        for method in comparison.methods:
            table.add_row(method.name, *_cells(getattr(method, name)))
        yield from (Text(), table)
    table = _table("flips", "worse", "better", "McNemar")
    for method in comparison.methods:
        table.add_row(method.name, str(method.worse), str(method.better), _p(method.flips_p))
    yield from (Text(), table)


def _table(name: str, *headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(name, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(paired: Paired) -> tuple[str, str, str, str]:
    found = paired.difference
    interval = "" if math.isnan(found.low) else f" [{_points(found.low)}, {_points(found.high)}]"
    return _percent(paired.a), _percent(paired.b), _points(found.mean) + interval, _p(found.p)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _points(difference: float) -> str:
    return "-" if math.isnan(difference) else f"{100 * difference:+.1f}"


def _p(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _written(comparison: Comparison) -> WrittenTable:
    statistics = [
        heading for name in ("accuracy", "RStd", "consistency") for heading in (f"{name} A", "B", "B - A", "p")
    ]
    rows = [
        [
            method.name,
            *(cell for name in STATISTICS for cell in _cells(getattr(method, name))),
            *(str(method.worse), str(method.better), _p(method.flips_p)),
        ]
        for method in comparison.methods
    ]
    return WrittenTable(
        "comparison",
        f"A: {comparison.a}. B: {comparison.b}. {comparison.num_samples} samples x {comparison.num_permutations} "
        f"permutations. {' '.join(_NOTE.split())}",
        ["readout", *statistics, "worse", "better", "McNemar"],
        rows,
        [method.record() for method in comparison.methods],
    )


def _json(comparison: Comparison) -> str:
    content = {
        **{name: getattr(comparison, name) for name in ("a", "b", "num_samples", "num_permutations")},
        "readouts": [method.record() for method in comparison.methods],
        "settings": {name: {"a": a, "b": b} for name, (a, b) in comparison.settings.items()},
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


_WRITERS = {
    ".md": lambda comparison: _written(comparison).markdown(),
    ".csv": lambda comparison: _written(comparison).csv(),
    ".tex": lambda comparison: _written(comparison).latex(),
    ".json": _json,
}


def check_ending(path: str | Path) -> None:
    """Raise a UserError if no comparison can be written into a file of this name."""
    if Path(path).suffix not in _WRITERS:
        raise UserError(f"'{path}' ends in none of {', '.join(_WRITERS)}.")


def write_comparison(path: str | Path, comparison: Comparison) -> None:
    """Write a comparison as its file's ending says: .md, .csv, .tex or .json; whole or not at all."""
    check_ending(path)
    with atomic_write(path) as partial:
        partial.write_text(_WRITERS[Path(path).suffix](comparison), encoding="utf-8", newline="")
