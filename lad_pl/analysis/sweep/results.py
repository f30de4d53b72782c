"""What a sweep found: one row per setting, and their mean and spread over draws of calibration samples."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lad_pl.analysis.sweep.calibration_subsets import ALL
from lad_pl.analysis.sweep.evaluate import METRICS, Scores
from lad_pl.analysis.sweep.settings_grid import FACTORS, Plan, Setting
from lad_pl.files import atomic_write


@dataclass(frozen=True)
class Result:
    """One setting, with one choice of calibration samples."""

    setting: Setting
    scores: Scores


@dataclass(frozen=True)
class Summary:
    """One setting, over all draws of calibration samples."""

    setting: Setting
    """Its ``draw`` is None."""
    num_draws: int
    mean: Scores
    std: Scores
    """Standard deviation (ddof 1) over the draws; None for a single one."""


def summarise(results: Sequence[Result]) -> list[Summary]:
    """Mean and spread over draws, in the order of the settings."""
    by_setting: dict[Setting, list[Scores]] = {}
    for result in results:
        by_setting.setdefault(result.setting.without_draw(), []).append(result.scores)
    return [
        Summary(setting, len(scores), _over(scores, statistics.fmean, 1), _over(scores, statistics.stdev, 2))
        for setting, scores in by_setting.items()
    ]


def series(plan: Plan, summaries: Sequence[Summary], factor: str) -> dict[str, dict[Any, Summary]]:
    """For every readout to which a factor matters: the summary by the factor's value, all other factors held."""
    found: dict[str, dict[Any, Summary]] = {}
    for summary in summaries:
        value = getattr(summary.setting, factor)
        if value is not None and plan.is_reference(summary.setting, but=factor):
            found.setdefault(summary.setting.readout, {})[value] = summary
    order = plan.varied.get(factor, ())
    return {name: {value: values[value] for value in order if value in values} for name, values in found.items()}


def components(plan: Plan, summaries: Sequence[Summary]) -> list[Summary]:
    """Every readout, under every recipe that was tried, all other factors held."""
    found = [summary for summary in summaries if plan.is_reference(summary.setting, but="recipe")]
    readouts = list(dict.fromkeys(summary.setting.readout for summary in found))
    return sorted(found, key=lambda summary: readouts.index(summary.setting.readout))


def best(summaries: Sequence[Summary], count: int = 5) -> list[Summary]:
    """The settings with the highest mean accuracy; of equal ones, those with the highest consistency."""

    def key(summary: Summary) -> tuple[float, ...]:
        return tuple(-(summary.mean[name] or 0.0) for name in ("accuracy", "consistency"))

    return sorted(summaries, key=key)[:count]


def write_csv(path: Path, results: Sequence[Result], names: Callable[[Sequence[int]], Sequence[str]]) -> None:
    """One row per setting; a factor that does not matter to the readout is empty, and so is an undefined metric.

    Args:
        path: of the file.
        results: the rows.
        names: ids of the calibration samples at some places.
    """
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["readout", *FACTORS, "draw", "calibration_samples", *METRICS])
        for result in results:
            setting, draw = result.setting, result.setting.draw
            writer.writerow(
                [
                    setting.readout,
                    *(getattr(setting, factor) for factor in FACTORS),
                    *(["", ""] if draw is None else [draw.number, " ".join(names(draw.samples))]),
                    *(result.scores[name] for name in METRICS),
                ]
            )


def _over(scores: Sequence[Scores], statistic: Callable[[list[float]], float], at_least: int) -> Scores:
    def of(name: str) -> float | None:
        values = [value for score in scores if (value := score[name]) is not None]
        return statistic(values) if len(values) >= at_least else None

    return {name: of(name) for name in METRICS}


LABELS = {
    "recipe": "recipe",
    "top_layers": "layers read per prompt, K",
    "temperature": "temperature of the posterior, tau",
    "layers": "captured layers",
    "head_exponent": "exponent e of the heads' weights g^e",
    "num_calibration": "calibration samples",
}


_SHORT = {
    "recipe": "recipe {}",
    "top_layers": "K = {}",
    "temperature": "tau = {}",
    "layers": "layers {}",
    "head_exponent": "weights g^{}",
    "num_calibration": "{} calibration samples",
}


@dataclass(frozen=True)
class About:
    """The run that was swept."""

    name: str
    stage: str
    num_candidates: int
    num_samples: int
    num_permutations: int
    layers: Sequence[int]

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.stage}): N = {self.num_candidates} images, {self.num_samples} samples x "
            f"{self.num_permutations} permutations"
        )


def held(plan: Plan, about: About, but: str, shown: Sequence[Summary]) -> str:
    """The values at which all factors that matter to what is shown are held, but for one."""
    settings = [summary.setting for summary in shown]
    used = [name for name in FACTORS if name != but and any(getattr(each, name) is not None for each in settings)]
    words = {name: _SHORT[name].format(value_name(plan.reference[name])) for name in used}
    if "layers" in words and plan.reference["layers"].name == ALL:
        words["layers"] = f"layers {shortened(about.layers)}"
    if "top_layers" in words and but == "layers":
        words["top_layers"] += " or all that there are"
    return ", ".join(words.values())


def chosen(setting: Setting) -> str:
    """The choices of a setting that matter to its readout."""
    values = {name: getattr(setting, name) for name in FACTORS}
    return ", ".join(_SHORT[name].format(value_name(value)) for name, value in values.items() if value is not None)


def value_name(value: Any) -> str:
    """A factor's value, as short as it goes."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def shortened(layers: Sequence[int]) -> str:
    """Layer numbers, neighbours as a range.

    >>> shortened([3, 7, 8, 9])
    '3, 7-9'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


_WIDTH, _GAP = 80, 2


_CHOICES = "choices"
"""Header of a last column of words, which may be broken into lines."""


_CHOSEN_HERE = (
    "Chosen on the samples that they are measured on: report such a choice on other samples (sweep --stage validate, "
    "then test)."
)


@dataclass(frozen=True)
class TextTable:
    """Cells, with what stands above and below them."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        cells = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{cells}\n\n{self.note}\n"

    def terminal(self) -> Group:
        """For a terminal: as many columns beside each other as fit."""
        parts = [self._part(columns) for columns in self._columns()]
        return Group(Text(f"\n{self.title}", "bold"), *parts, Text(self.note, "dim"))

    def _columns(self) -> Iterator[list[int]]:
        """Numbers of the columns beside the first, by part."""
        lines = [self.header, *self.rows]
        widths = [_GAP + max(len(line[column]) for line in lines) for column in range(len(self.header))]
        if self.header[-1] == _CHOICES:
            widths[-1] = _GAP + len(_CHOICES)
        part: list[int] = []
        for column in range(1, len(widths)):
            if part and widths[0] + sum(widths[other] for other in [*part, column]) > _WIDTH + 1:
                yield part
                part = []
            part.append(column)
        yield part

    def _part(self, columns: Sequence[int]) -> Table:
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column(self.header[0], no_wrap=True)
        for column in columns:
            words = self.header[column] == _CHOICES
            table.add_column(self.header[column], justify="left" if words else "right", no_wrap=not words)
        for row in self.rows:
            table.add_row(row[0], *(row[column] for column in columns))
        return table


def tables(plan: Plan, summaries: Sequence[Summary], about: About) -> list[TextTable]:
    """What a sweep has to say: the readouts side by side, every varied factor, and the best few settings."""
    found = [
        _components(plan, summaries, about),
        *(_of_factor(plan, summaries, about, factor) for factor in plan.varied if factor != "recipe"),
        _best(summaries),
    ]
    return [table for table in found if len(table.rows) > (1 if table is found[0] else 0)]


def markdown(made: Sequence[TextTable], about: About, plots: Sequence[str]) -> str:
    """The content of sweep.md."""
    pictures = "\n".join(f"![{name}]({name}.png)\n" for name in plots)
    parts = [f"# Sweep of {about}\n", *(table.markdown() for table in made), pictures]
    return "\n".join(part for part in parts if part)


def _components(plan: Plan, summaries: Sequence[Summary], about: About) -> TextTable:
    found = components(plan, summaries)
    rows = [
        [
            summary.setting.readout,
            summary.setting.recipe or "",
            f"{percent(summary.mean['accuracy'])} ± {percent(summary.mean['accuracy_std'])}",
            *(percent(summary.mean[name]) for name in ("rstd", "consistency", "circular_accuracy")),
        ]
        for summary in found
    ]
    note = f"In %. accuracy: mean ± std over permutations. {held(plan, about, 'recipe', found)}."
    header = ["readout", "recipe", "accuracy", "RStd", "consistency", "circular"]
    return TextTable("Readouts", note, header, rows)


def _of_factor(plan: Plan, summaries: Sequence[Summary], about: About, factor: str) -> TextTable:
    found = series(plan, summaries, factor)
    values = plan.varied[factor]
    rows = [[name, *(_cell(by_value.get(value)) for value in values)] for name, by_value in found.items()]
    shown = [summary for by_value in found.values() for summary in by_value.values()]
    over = ": mean ± std over draws of calibration samples" if any(each.num_draws > 1 for each in shown) else ""
    note = f"Accuracy in %{over}. {held(plan, about, factor, shown)}."
    title = LABELS[factor][0].upper() + LABELS[factor][1:]
    return TextTable(title, note, ["readout", *map(value_name, values)], rows)


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    spread = summary.std["accuracy"]
    return percent(summary.mean["accuracy"]) + ("" if spread is None else f" ± {percent(spread)}")


def _best(summaries: Sequence[Summary]) -> TextTable:
    rows = [
        [
            summary.setting.readout,
            _cell(summary),
            *(percent(summary.mean[name]) for name in ("rstd", "consistency")),
            chosen(summary.setting),
        ]
        for summary in best(summaries)
    ]
    return TextTable("Highest accuracy", _CHOSEN_HERE, ["readout", "accuracy", "RStd", "consistency", _CHOICES], rows)
