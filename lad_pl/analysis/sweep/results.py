"""What a sweep found: one row per setting, and their mean and spread over draws of calibration samples."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lad_pl.analysis.sweep.score import METRICS, Scores
from lad_pl.analysis.sweep.settings import FACTORS, Setting
from lad_pl.analysis.sweep.settings_grid import Plan
from lad_pl.files import whole_file


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
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
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
