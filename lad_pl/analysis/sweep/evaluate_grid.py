"""Evaluates a grid of settings on the stored evidence of a run, and writes the results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from lad_pl.analysis.stored_run import StoredRun
from lad_pl.analysis.sweep.calibration_subsets import Calibrations
from lad_pl.analysis.sweep.evaluate import PROMPTS_AT_A_TIME, Evaluation, score
from lad_pl.analysis.sweep.results import Result, SweptRun, make_tables, markdown, summarise, write_csv
from lad_pl.analysis.sweep.settings_grid import SettingsGrid, Stored, make_grid
from lad_pl.analysis.threads import one_thread
from lad_pl.errors import UserError, say
from lad_pl.evidence.store import stream_prompts
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.files import atomic_write
from lad_pl.readouts import READOUTS


@dataclass(frozen=True)
class EvaluatedGrid:
    """A grid of settings and the metrics of each."""

    run: SweptRun
    grid: SettingsGrid
    calibrations: Calibrations
    results: list[Result]


def evaluate_grid(
    run: StoredRun, options: Mapping[str, Any], readouts: Sequence[str] | None, draws: int, seed: int
) -> EvaluatedGrid:
    """Compute the metrics of every setting from what a run has stored.

    Args:
        run: the run.
        options: a value, a list of values or None by factor.
        readouts: their names; if None, see :func:`lad_pl.analysis.sweep.settings_grid.make_grid`.
        draws: how many calibration subsets of every size.
        seed: of the subsets.

    Raises:
        UserError: a file of the run is missing or damaged, or an option needs more than is stored.
    """
    unknown = [name for name in run.report["settings"]["readouts"] if name not in READOUTS]
    if unknown and readouts is None:
        say(f"Left out, because no imported module registers such a readout: {', '.join(unknown)}")
    with one_thread():
        prompts, calibrations, stored = _read(run)
        grid = make_grid(stored, options, readouts, draws, seed)
        results = _results(grid, run, stored, prompts, calibrations)
    num_samples = len(prompts) // prompts.num_permutations
    swept = SweptRun(run.name, run.stage, prompts.num_candidates, num_samples, prompts.num_permutations, stored.layers)
    return EvaluatedGrid(swept, grid, calibrations, results)


def _read(run: StoredRun) -> tuple[EvidenceRecords, Calibrations, Stored]:
    """The tested prompts with the mean over heads, the calibration prompts, and the choices that they leave."""
    report, settings = run.report, run.readout
    prompts = run.prompts(heads=False)
    calibrations = Calibrations(run.calibration_prompts(), settings)
    layers = tuple(report["layers"])
    if not len(layers) == prompts.evidence.layer_attention.shape[1] == calibrations.num_layers:
        raise UserError(f"The evidence in {run.path} is not that of its metrics.json; run fit and test again.")
    made, stored = run.calibration.log_p_obs_geometric, calibrations.of(None, None).log_p_obs_geometric
    if made.shape != stored.shape or not torch.allclose(made.double(), stored, atol=1e-3):
        raise UserError(
            f"The calibration prompts stored for {run.path} are not those of its calibration; run fit again."
        )
    reported = tuple(name for name in report["settings"]["readouts"] if name in READOUTS)
    return prompts, calibrations, Stored(reported, layers, len(calibrations), settings)


def _results(
    grid: SettingsGrid, run: StoredRun, stored: Stored, prompts: EvidenceRecords, calibrations: Calibrations
) -> list[Result]:
    evaluation = Evaluation(grid.settings, calibrations, stored.readout, prompts.evidence.log_probs)
    heads = stored.readout.rows != "last" or any(READOUTS[each.readout].per_head for each in grid.settings)
    parts: Iterable[EvidenceRecords] = stream_prompts(run.folder.evidence(run.stage)) if heads else [prompts]
    console = Console(stderr=True)
    choices = track(
        evaluation.choices(parts),
        description=f"{len(grid.settings)} settings",
        total=math.ceil(len(prompts) / PROMPTS_AT_A_TIME),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    scores = score(torch.cat(list(choices), 1), prompts)
    return [Result(*pair) for pair in zip(grid.settings, scores, strict=True)]


def write_results(folder: Path, evaluated: EvaluatedGrid, plots: bool = True) -> None:
    """Write sweep.csv, sweep.md and the plots into a folder, and print the tables."""
    from lad_pl.analysis.sweep.plots import write_plots  # matplotlib: not before it is needed

    run, grid, results = evaluated.run, evaluated.grid, evaluated.results
    summaries = summarise(results)
    tables = make_tables(grid, summaries, run)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "sweep.csv", results, evaluated.calibrations.names)
    names = write_plots(folder, grid, summaries if plots else [], run)
    with atomic_write(folder / "sweep.md") as partial:
        partial.write_text(markdown(tables, run, names), encoding="utf-8")
    say(f"Sweep of {run}: {len(results)} settings")
    Console().print(*tables)
    say(f"Every setting: {folder / 'sweep.csv'}   Tables: {folder / 'sweep.md'}   Plots: {len(names)} in {folder}")
