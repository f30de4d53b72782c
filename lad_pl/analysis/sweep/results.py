"""The results of a sweep: one row per setting, their mean over calibration subsets, and the tables of these."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lad_pl.analysis.sweep.calibration_subsets import ALL
from lad_pl.analysis.sweep.evaluate import SCORED, Scores
from lad_pl.analysis.sweep.settings_grid import Setting, SettingsGrid
from lad_pl.analysis.table import Table, csv_cell, mean_and_std, percent
from lad_pl.files import atomic_write
from lad_pl.readouts import FACTORS

LABELS = {
    "recipe": "recipe",
    "top_layers": "layers read per prompt, K",
    "temperature": "temperature of the posterior, tau",
    "layers": "captured layers",
    "head_exponent": "exponent e of the heads' weights g^e",
    "top_heads": "heads read by head_top",
    "head_score": "score of the heads",
    "num_calibration": "calibration samples",
}
_SHORT = {
    "recipe": "recipe {}",
    "top_layers": "K = {}",
    "temperature": "tau = {}",
    "layers": "layers {}",
    "head_exponent": "weights g^{}",
    "top_heads": "{} heads",
    "head_score": "by {}",
    "num_calibration": "{} calibration samples",
}
_CHOSEN_HERE = (
    "Chosen on the samples that they are measured on: report such a choice on other samples (sweep --stage validate, "
    "then test)."
)


@dataclass(frozen=True)
class Result:
    """One setting, on one calibration subset."""

    setting: Setting
    scores: Scores


@dataclass(frozen=True)
class Summary:
    """One setting, over all its calibration subsets."""

    setting: Setting
    """Its ``subset`` is None."""
    num_subsets: int
    mean: Scores
    std: Scores
    """Standard deviation (ddof 1) over the subsets; None for a single one."""


@dataclass(frozen=True)
class SweptRun:
    """The run whose evidence was swept."""

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


def write_csv(path: Path, results: Sequence[Result], names: Callable[[Sequence[int]], Sequence[str]]) -> None:
    """One row per setting; a factor that does not matter to the readout is empty, and so is an undefined metric.

    Args:
        path: of the file.
        results: the rows.
        names: ids of the calibration samples with some indices.
    """
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["readout", *FACTORS, "draw", "calibration_samples", *SCORED])
        for result in results:
            setting, subset = result.setting, result.setting.subset
            writer.writerow(
                [
                    csv_cell(setting.readout),
                    *(getattr(setting, factor) for factor in FACTORS),
                    *(["", ""] if subset is None else [subset.number, csv_cell(" ".join(names(subset.samples)))]),
                    *(result.scores[name] for name in SCORED),
                ]
            )


def summarise(results: Sequence[Result]) -> list[Summary]:
    """Mean and standard deviation over calibration subsets, in the order of the settings."""
    by_setting: dict[Setting, list[Scores]] = {}
    for result in results:
        by_setting.setdefault(result.setting.without_subset(), []).append(result.scores)
    return [
        Summary(setting, len(scores), _over(scores, statistics.fmean, 1), _over(scores, statistics.stdev, 2))
        for setting, scores in by_setting.items()
    ]


def _over(scores: Sequence[Scores], statistic: Callable[[list[float]], float], at_least: int) -> Scores:
    def of(name: str) -> float | None:
        values = [value for score in scores if (value := score[name]) is not None]
        return statistic(values) if len(values) >= at_least else None

    return {name: of(name) for name in SCORED}


def series(grid: SettingsGrid, summaries: Sequence[Summary], factor: str) -> dict[str, dict[Any, Summary]]:
    """For every readout that depends on a factor: the summary by the factor's value, all other factors held."""
    found: dict[str, dict[Any, Summary]] = {}
    for summary in summaries:
        value = getattr(summary.setting, factor)
        if value is not None and grid.is_reference(summary.setting, but=factor):
            found.setdefault(summary.setting.readout, {})[value] = summary
    order = grid.varied.get(factor, ())
    return {name: {value: values[value] for value in order if value in values} for name, values in found.items()}


def components(grid: SettingsGrid, summaries: Sequence[Summary]) -> list[Summary]:
    """Every readout, under every recipe that was tried, all other factors held."""
    found = [summary for summary in summaries if grid.is_reference(summary.setting, but="recipe")]
    readouts = list(dict.fromkeys(summary.setting.readout for summary in found))
    return sorted(found, key=lambda summary: readouts.index(summary.setting.readout))


def best(summaries: Sequence[Summary], count: int = 5) -> list[Summary]:
    """The settings with the highest mean accuracy; of equal ones, those with the highest consistency."""

    def key(summary: Summary) -> tuple[float, ...]:
        return tuple(-(summary.mean[name] or 0.0) for name in ("accuracy", "consistency"))

    return sorted(summaries, key=key)[:count]


def value_label(value: Any) -> str:
    """A factor's value, as short as it goes."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_label(setting: Setting) -> str:
    """The choices of a setting that matter to its readout."""
    values = {name: getattr(setting, name) for name in FACTORS}
    return ", ".join(_SHORT[name].format(value_label(value)) for name, value in values.items() if value is not None)


def held_label(grid: SettingsGrid, run: SweptRun, but: str, shown: Sequence[Summary]) -> str:
    """The values at which all factors that matter to what is shown are held, but for one."""
    settings = [summary.setting for summary in shown]
    used = [name for name in FACTORS if name != but and any(getattr(each, name) is not None for each in settings)]
    labels: dict[str, str] = {name: _SHORT[name].format(value_label(grid.reference[name])) for name in used}
    if "layers" in labels and grid.reference["layers"].name == ALL:
        labels["layers"] = f"layers {shortened(run.layers)}"
    if "top_layers" in labels and but == "layers":
        labels["top_layers"] += " or all that there are"
    return ", ".join(labels.values())


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


def make_tables(grid: SettingsGrid, summaries: Sequence[Summary], run: SweptRun) -> list[Table]:
    """The readouts side by side, a table for every varied factor, and the best few settings."""
    side_by_side = _components_table(grid, summaries, run)
    factors = (_factor_table(grid, summaries, run, factor) for factor in grid.varied if factor != "recipe")
    return [
        *([side_by_side] if len(side_by_side.rows) > 1 else []),
        *(table for table in factors if table.rows),
        _best_table(summaries),
    ]


def markdown(tables: Sequence[Table], run: SweptRun, plots: Sequence[str]) -> str:
    """The content of sweep.md."""
    pictures = "\n".join(f"![{name}]({name}.png)\n" for name in plots)
    parts = [f"# Sweep of {run}\n", *(f"## {table.title}\n\n{table.markdown()}" for table in tables), pictures]
    return "\n".join(part for part in parts if part)


def _components_table(grid: SettingsGrid, summaries: Sequence[Summary], run: SweptRun) -> Table:
    found = components(grid, summaries)
    rows = [
        [
            summary.setting.readout,
            summary.setting.recipe or "",
            mean_and_std(summary.mean["accuracy"], summary.mean["accuracy_std"]),
            *(percent(summary.mean[name]) for name in ("rstd", "consistency", "circular_accuracy")),
        ]
        for summary in found
    ]
    caption = f"In %. accuracy: mean ± std over permutations. {held_label(grid, run, 'recipe', found)}."
    columns = ["readout", "recipe", "accuracy", "RStd", "consistency", "circular"]
    return Table("readouts", columns, rows, caption, title="Readouts")


def _factor_table(grid: SettingsGrid, summaries: Sequence[Summary], run: SweptRun, factor: str) -> Table:
    found = series(grid, summaries, factor)
    values = grid.varied[factor]
    rows = [[name, *(_accuracy(by_value.get(value)) for value in values)] for name, by_value in found.items()]
    shown = [summary for by_value in found.values() for summary in by_value.values()]
    over = ": mean ± std over calibration subsets" if any(each.num_subsets > 1 for each in shown) else ""
    caption = f"Accuracy in %{over}. {held_label(grid, run, factor, shown)}."
    title = LABELS[factor][0].upper() + LABELS[factor][1:]
    return Table(factor, ["readout", *map(value_label, values)], rows, caption, title=title)


def _best_table(summaries: Sequence[Summary]) -> Table:
    rows = [
        [
            summary.setting.readout,
            _accuracy(summary),
            *(percent(summary.mean[name]) for name in ("rstd", "consistency")),
            setting_label(summary.setting),
        ]
        for summary in best(summaries)
    ]
    columns = ["readout", "accuracy", "RStd", "consistency", "choices"]
    return Table("best", columns, rows, _CHOSEN_HERE, title="Highest accuracy", text_column=4)


def _accuracy(summary: Summary | None) -> str:
    if summary is None:
        return ""
    mean, std = summary.mean["accuracy"], summary.std["accuracy"]
    return percent(mean) if std is None else mean_and_std(mean, std)
