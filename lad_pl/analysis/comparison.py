"""Two runs of the same prompts, or two readouts of one run, compared by accuracy, RStd, consistency and flips."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text
from torch import Tensor

from lad_pl.analysis.bootstrap import Paired, mcnemar, paired_bootstrap, rstd_differences
from lad_pl.analysis.matched_runs import Answers, answers_of, matched_answers
from lad_pl.analysis.stored_run import StoredRun
from lad_pl.analysis.table import Table, interval, p_value, percent, points
from lad_pl.errors import UserError, printable
from lad_pl.files import atomic_write
from lad_pl.metrics import finite
from lad_pl.provenance import flattened

_STATISTICS = {"accuracy": "accuracy", "rstd": "RStd", "consistency": "consistency"}
_PAIRED, _FLIPS = ("A", "B", "B - A", "p"), ("worse", "better", "McNemar")
_NOTE = (
    "In %. B - A: with its 95 % interval and p, from a paired bootstrap over samples. worse: prompts that A answers "
    "correctly and B does not; better: the reverse. McNemar: p of the exact test on these, which takes a sample's "
    "permutations for independent."
)


@dataclass(frozen=True)
class ComparedMethods:
    """A's answers by one readout (or method) against B's by the same or another."""

    name: str
    accuracy: Paired
    rstd: Paired
    consistency: Paired
    worse: int
    """Prompts that A answers correctly and B does not."""
    better: int
    """Prompts that B answers correctly and A does not."""

    @property
    def flips_p(self) -> float:
        """McNemar's exact test on the two counts; see :func:`lad_pl.analysis.bootstrap.mcnemar`."""
        return mcnemar(self.worse, self.better)

    def record(self) -> dict[str, Any]:
        """Plain numbers: shares, not percent; None where there is no number."""
        numbers: dict[str, float] = {}
        for name in _STATISTICS:
            paired: Paired = getattr(self, name)
            found = paired.difference
            numbers |= {f"{name}_a": paired.a, f"{name}_b": paired.b, f"{name}_difference": found.mean}
            numbers |= {f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": found.p}
        numbers |= {"worse": self.worse, "better": self.better, "flips_p": self.flips_p}
        return {"readout": self.name, **{name: finite(value) for name, value in numbers.items()}}


@dataclass(frozen=True)
class Comparison:
    """What was compared, and the outcome. Rich prints it: ``Console().print(comparison)``."""

    a: str
    b: str
    num_samples: int
    num_permutations: int
    methods: Sequence[ComparedMethods]
    settings: dict[str, tuple[Any, Any]]
    """The settings in which the runs differ, by their dotted names."""

    def __rich__(self) -> Group:
        """A table per statistic, and the settings in which the runs differ."""
        shown = f"{self.num_samples} samples x {self.num_permutations} permutations"
        parts: list[Any] = [Text(f"A: {printable(self.a)}\nB: {printable(self.b)}\n{shown}", "bold")]
        for name, heading in _STATISTICS.items():
            rows = [[method.name, *_paired_cells(getattr(method, name))] for method in self.methods]
            parts.append(Table(name, (heading, *_PAIRED), rows))
        rows = [[method.name, *_flip_cells(method)] for method in self.methods]
        parts += [Table("flips", ("flips", *_FLIPS), rows), Text(_NOTE, "dim")]
        if self.settings:
            parts.append(Text("\nThe runs differ in", "bold"))
            parts += [
                Text(printable(f"{name}: A {_short(a)}, B {_short(b)}")) for name, (a, b) in self.settings.items()
            ]
        return Group(*parts)

    def table(self) -> Table:
        """One row per readout, one column for all that is known of it."""
        statistics = [f"{name} A" if column == "A" else column for name in _STATISTICS.values() for column in _PAIRED]
        return Table(
            name="comparison",
            columns=["readout", *statistics, *_FLIPS],
            rows=[
                [
                    method.name,
                    *(cell for name in _STATISTICS for cell in _paired_cells(getattr(method, name))),
                    *_flip_cells(method),
                ]
                for method in self.methods
            ],
            caption=f"A: {self.a}. B: {self.b}. {self.num_samples} samples x {self.num_permutations} permutations. "
            f"{_NOTE}",
            records=[method.record() for method in self.methods],
        )

    def json(self) -> str:
        """The outcome in plain numbers."""
        content = {
            **{name: getattr(self, name) for name in ("a", "b", "num_samples", "num_permutations")},
            "readouts": [method.record() for method in self.methods],
            "settings": {name: {"a": a, "b": b} for name, (a, b) in self.settings.items()},
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def compare_runs(
    runs: Sequence[StoredRun], readouts: Sequence[str] | None, shared: bool, draws: int, seed: int
) -> Comparison:
    """Compare two runs, or readouts of one; the arguments are those of :func:`lad_pl.analysis.compare.compare`.

    Raises:
        UserError: the runs do not have the same prompts, or a readout is not in them.
    """
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


def _statistics(
    first: Answers, second: Answers, pairs: Sequence[tuple[str, str]], draws: int, seed: int
) -> Iterator[ComparedMethods]:
    targets = first.targets
    num_candidates = len(first.records[0]["permutation"])
    correct = [(first.choices(a) == targets, second.choices(b) == targets) for a, b in pairs]
    rstd = rstd_differences(correct, targets, num_candidates, draws, seed)
    for (name_a, name_b), (a, b), spread in zip(pairs, correct, rstd, strict=True):
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


def _differing(first: StoredRun, second: StoredRun) -> dict[str, tuple[Any, Any]]:
    a, b = (flattened({"model": run.report.get("model"), **run.report["settings"]}) for run in (first, second))
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)}


def _paired_cells(paired: Paired) -> tuple[str, str, str, str]:
    found = paired.difference
    difference = points(found.mean) if interval(found) == "-" else f"{points(found.mean)} {interval(found)}"
    return percent(paired.a), percent(paired.b), difference, p_value(found.p)


def _flip_cells(method: ComparedMethods) -> tuple[str, str, str]:
    return str(method.worse), str(method.better), p_value(method.flips_p)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


_WRITERS = {
    ".md": lambda comparison: comparison.table().markdown(),
    ".csv": lambda comparison: comparison.table().csv(),
    ".tex": lambda comparison: comparison.table().latex(),
    ".json": Comparison.json,
}


def check_ending(path: str | Path) -> None:
    """Raise a UserError if no comparison can be written into a file of this name."""
    if Path(path).suffix not in _WRITERS:
        raise UserError(f"'{path}' ends in none of {', '.join(_WRITERS)}.")


def write_comparison(path: str | Path, comparison: Comparison) -> None:
    """Write a comparison in the format that its file's ending names: .md, .csv, .tex or .json."""
    check_ending(path)
    with atomic_write(path) as partial:
        partial.write_text(_WRITERS[Path(path).suffix](comparison), encoding="utf-8", newline="")
