"""``python -m lad_pl sweep RUN``: light to import, so that its ``--help`` comes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def sweep(
    run: Path,
    readouts: list[str] | str | None = None,
    recipe: list[str] | str | None = None,
    top_layers: list[int] | int | None = None,
    temperature: list[float] | float | None = None,
    layers: list[str | int] | str | int | None = None,
    head_exponent: list[float] | float | None = None,
    top_heads: list[int] | int | None = None,
    head_score: list[str] | str | None = None,
    num_calibration: list[int] | int | None = None,
    draws: int = 20,
    seed: int = 0,
    stage: Literal["test", "validate"] = "test",
    out: Path | None = None,
    plots: bool = True,
) -> list[Any]:
    """Try other settings on the evidence that a run has stored, without its model.

    Where values are given, every combination of them is tried; what is not given stays as in the run. Where none are
    given, each factor is varied by itself: the paper's ablations. A list is written as [1,2,4].

    Args:
        run: the run folder, after fit and test.
        readouts: which readouts to try; those that the run reports if unset, and in ablations also the parts of the
            method.
        recipe: reference, paper.
        top_layers: K, how many layers are read for each prompt; lowered to what a set of layers has if unset.
        temperature: tau, the sharpness of the posterior.
        layers: sets of stored layers, as the model counts them: 21 for one layer, 21-35, 21+23+30, all, or each for
            every layer by itself.
        head_exponent: e, where the readouts of single heads weight a head by its information to the power of e.
        top_heads: how many heads head_top reads.
        head_score: what it ranks them by: information, qr, core.
        num_calibration: how many of the stored calibration samples to calibrate on.
        draws: how many calibration subsets of that size to try; all there are if there are fewer.
        seed: of the subsets.
        stage: whose evidence: test, or validate, to choose settings without looking at the tested samples.
        out: folder for sweep.csv, sweep.md and the plots; sweep (or validation_sweep) in the run folder if unset.
        plots: draw them; a plot for every factor of which more than one value is tried, and one of all readouts.

    Returns:
        One lad_pl.analysis.sweep.results.Result per setting, as in sweep.csv.

    Raises:
        UserError: a file of the run is missing or damaged, or an option needs more than is stored.
    """
    from lad_pl.analysis.stored_run import StoredRun
    from lad_pl.analysis.sweep.evaluate_grid import evaluate_grid, write_results

    options = {
        "recipe": recipe,
        "top_layers": top_layers,
        "temperature": temperature,
        "layers": layers,
        "head_exponent": head_exponent,
        "top_heads": top_heads,
        "head_score": head_score,
        "num_calibration": num_calibration,
    }
    stored_run = StoredRun(Path(run), stage)
    evaluated = evaluate_grid(stored_run, options, [readouts] if isinstance(readouts, str) else readouts, draws, seed)
    folder = stored_run.path / ("sweep" if stage == "test" else "validation_sweep") if out is None else Path(out)
    write_results(folder, evaluated, plots)
    return evaluated.results
