"""The section on the run's sweep over the correction's free choices, if there was one."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from lad_pl.analysis.report.reported_run import BASELINE, ReportedRun
from lad_pl.analysis.report.sections import Picture, Section
from lad_pl.analysis.table import Table, percent
from lad_pl.errors import UserError

_SHOWN = 12
_FACTORS = {
    "readout": "readout",
    "recipe": "recipe",
    "top_layers": "K",
    "temperature": "tau",
    "layers": "layers",
    "head_exponent": "exponent",
    "top_heads": "heads",
    "head_score": "by",
    "num_calibration": "calibrated on",
}
_NEW = ("top_heads", "head_score")
"""Columns that sweeps of earlier versions lack."""
_METRICS = {"accuracy": "accuracy", "accuracy_std": "std", "rstd": "RStd", "consistency": "consistency"}
Row = Mapping[str, str]


def ablation_section(run: ReportedRun) -> Section:
    """The run's sweep: its plots and its best settings; or how to make one.

    Raises:
        UserError: sweep.csv is not what sweep writes.
    """
    again = f"python -m lad_pl sweep {run.run.path}"
    folder = run.run.path / "sweep"
    if not (folder / "sweep.csv").is_file():
        return _section(f"No sweep yet: {again} tries other settings on the stored evidence, without the model.")
    try:
        with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not _fits(rows, run):
            return _section(f"The sweep in {folder} is of other results than these; {again} makes a new one.")
        table = _best_settings(rows)
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(f"{folder / 'sweep.csv'} is not what sweep writes; {again} makes a new one.") from error
    return Section("ablations", "Other settings", tables=[table], pictures=_drawings(folder))


def _section(note: str) -> Section:
    return Section("ablations", "Other settings", notes=[note])


def _fits(rows: Sequence[Row], run: ReportedRun) -> bool:
    """Whether the sweep found for the baseline what the run did; a sweep without the baseline is trusted."""
    accuracy = run.metrics[BASELINE]["accuracy"]
    found = [float(row["accuracy"]) for row in rows if row["readout"] == BASELINE]
    return all(abs(value - accuracy) < 1e-9 for value in found)


def _best_settings(rows: Sequence[Row]) -> Table:
    """The settings with the highest accuracy, each the mean over its calibration subsets."""
    there = set(rows[0]) if rows else set()
    factors = {name: label for name, label in _FACTORS.items() if name in there or name not in _NEW}
    subsets: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        subsets.setdefault(tuple(row[factor] for factor in factors), []).append(row)
    means = {setting: {key: _mean(of, key) for key in _METRICS} for setting, of in subsets.items()}
    best = sorted(means, key=lambda setting: -(means[setting]["accuracy"] or 0))[:_SHOWN]
    return Table(
        name="ablations",
        caption=f"The best {len(best)} of {len(means)} settings, in %, each the mean over its calibration "
        "subsets. Chosen on the samples that they are measured on: report such a choice on others (sweep --stage "
        "validate, then test).",
        columns=[*factors.values(), *_METRICS.values()],
        rows=[[*setting, *(percent(value) for value in means[setting].values())] for setting in best],
        records=[{**dict(zip(factors, setting, strict=True)), **means[setting]} for setting in best],
    )


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row[key]]
    return fmean(values) if values else None


def _drawings(folder: Path) -> list[Picture]:
    """Drawings as images, which may neither run scripts nor load anything."""
    paths = sorted(folder.glob("*.svg"), key=lambda path: (path.stem != "readouts", path.stem))
    encoded = {path: base64.b64encode(path.read_bytes()).decode() for path in paths}
    return [Picture(path.stem.replace("_", " "), f"data:image/svg+xml;base64,{data}") for path, data in encoded.items()]
