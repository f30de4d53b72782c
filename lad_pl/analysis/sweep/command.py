"""``python -m lad_pl sweep RUN``: any grid of readouts and their free choices, replayed from stored evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import track

from lad_pl.analysis.stored_run import StoredRun
from lad_pl.analysis.sweep.calibration_subsets import Calibrations
from lad_pl.analysis.sweep.evaluate import PROMPTS_AT_A_TIME, Evaluation, score
from lad_pl.analysis.sweep.plots import write_plots
from lad_pl.analysis.sweep.results import About, Result, markdown, summarise, tables, write_csv
from lad_pl.analysis.sweep.settings_grid import HEAD_READOUTS, Plan, Stored, make_plan
from lad_pl.errors import UserError
from lad_pl.evidence.store import stream_prompts
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.files import atomic_write
from lad_pl.readouts import READOUTS


def sweep(
    run: Path,
    readouts: list[str] | str | None = None,
    recipe: list[str] | str | None = None,
    top_layers: list[int] | int | None = None,
    temperature: list[float] | float | None = None,
    layers: list[str | int] | str | int | None = None,
    head_exponent: list[float] | float | None = None,
    num_calibration: list[int] | int | None = None,
    draws: int = 20,
    seed: int = 0,
    stage: Literal["test", "validate"] = "test",
    out: Path | None = None,
    plots: bool = True,
) -> list[Result]:
    """Try other settings on the evidence that a run has stored, without its model.

    Where values are given, every combination of them is tried; what is not given stays as in the run. Where none are
    given, each factor is varied by itself: the paper's ablations. A list is written as [1,2,4].

    Args:
        run: the run folder, after fit and test.
        readouts: which readouts to try; those that the run reports if unset, and in ablations the parts of the method.
        recipe: reference, paper.
        top_layers: K, how many layers are read for each prompt; cut to what a set of layers has if unset.
        temperature: tau, the sharpness of the posterior.
        layers: sets of stored layers, as the model counts them: 21 for one layer, 21-35, 21+23+30, all, or each for
            every layer by itself.
        head_exponent: e, where the readouts of single heads weight a head by its information to the power of e.
        num_calibration: how many of the stored calibration samples to calibrate on.
        draws: how many choices of that many calibration samples to try; all there are if there are fewer.
        seed: of the draws.
        stage: whose evidence: test, or validate, to choose settings without looking at the tested samples.
        out: folder for sweep.csv, sweep.md and the plots; sweep (or validation_sweep) in the run folder if unset.
        plots: draw them; a plot for every factor of which more than one value is tried, and one of all readouts.

    Returns:
        One result per setting, as in sweep.csv.

    Raises:
        UserError: the run lacks what is needed, or an option cannot be met from its store.
    """
    options = {
        "recipe": recipe,
        "top_layers": top_layers,
        "temperature": temperature,
        "layers": layers,
        "head_exponent": head_exponent,
        "num_calibration": num_calibration,
    }
    chosen = [readouts] if isinstance(readouts, str) else readouts
    stored_run = StoredRun(Path(run), stage)
    with _one_thread():
        prompts, calibrations, stored = _read(stored_run)
        plan = make_plan(stored, options, chosen, draws, seed)
        results = _results(plan, stored_run, stored, prompts, calibrations)
    num_samples = len(prompts) // prompts.num_permutations
    about = About(stored_run.name, stage, prompts.num_candidates, num_samples, prompts.num_permutations, stored.layers)
    folder = stored_run.path / ("sweep" if stage == "test" else "validation_sweep") if out is None else Path(out)
    _write(folder, plan, results, about, calibrations, plots)
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch keeps to one CPU thread.

    A sweep is thousands of operations on a few thousand numbers each: they wait longer for a second thread than it
    saves them, and on a busy machine many times longer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read(run: StoredRun) -> tuple[EvidenceRecords, Calibrations, Stored]:
    """The tested prompts with the mean over heads, the calibration passes, and what there is to choose from."""
    report, settings = run.report, run.readout
    prompts = run.prompts(heads=False)
    calibrations = Calibrations(run.calibration_prompts())
    layers = tuple(report["layers"])
    if not len(layers) == prompts.evidence.layer_attention.shape[1] == calibrations.num_layers:
        raise UserError(f"The evidence in {run.path} is not that of its metrics.json; run fit and test again.")
    made, stored = run.calibration.log_p_obs_geometric, calibrations.of(None, None).log_p_obs_geometric
    if made.shape != stored.shape or not torch.allclose(made.double(), stored, atol=1e-3):
        raise UserError(
            f"The calibration passes stored for {run.path} are not those of its calibration; run fit again."
        )
    reported = tuple(name for name in report["settings"]["readouts"] if name in READOUTS)
    return prompts, calibrations, Stored(reported, layers, len(calibrations), settings)


def _results(
    plan: Plan, run: StoredRun, stored: Stored, prompts: EvidenceRecords, calibrations: Calibrations
) -> list[Result]:
    evaluation = Evaluation(plan.settings, calibrations, stored.readout, prompts.evidence.log_probs)
    heads = any(setting.readout in HEAD_READOUTS for setting in plan.settings)
    parts: Iterable[EvidenceRecords] = stream_prompts(run.folder.evidence(run.stage)) if heads else [prompts]
    console = Console(stderr=True)
    choices = track(
        evaluation.choices(parts),
        description=f"{len(plan.settings)} settings",
        total=math.ceil(len(prompts) / PROMPTS_AT_A_TIME),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    scores = score(torch.cat(list(choices), 1), prompts)
    return [Result(*pair) for pair in zip(plan.settings, scores, strict=True)]


def _write(
    folder: Path, plan: Plan, results: list[Result], about: About, calibrations: Calibrations, plots: bool
) -> None:
    summaries = summarise(results)
    made = tables(plan, summaries, about)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "sweep.csv", results, calibrations.names)
    names = write_plots(folder, plan, summaries if plots else [], about)
    with atomic_write(folder / "sweep.md") as partial:
        partial.write_text(markdown(made, about, names), encoding="utf-8")
    print(f"Sweep of {about}: {len(results)} settings")
    Console().print(*(table.terminal() for table in made))
    print(f"Every setting: {folder / 'sweep.csv'}   Tables: {folder / 'sweep.md'}   Plots: {len(names)} in {folder}")
