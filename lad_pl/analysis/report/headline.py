"""The head of the page: how much accuracy position costs, in a sentence and three numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lad_pl.analysis.bootstrap import Difference
from lad_pl.analysis.report.reported_run import BASELINE, ReportedRun
from lad_pl.analysis.report.sections import gain
from lad_pl.analysis.table import percent, points
from lad_pl.calibrate import warning


@dataclass(frozen=True)
class Tile:
    """One number of the baseline, and what the correction makes of it."""

    name: str
    before: str
    after: str | None
    what: str
    """What the number is."""


@dataclass(frozen=True)
class Headline:
    """The head of the page."""

    about: str
    title: str
    lead: str
    tiles: Sequence[Tile]


def make_headline(run: ReportedRun) -> Headline:
    """The headline of a run."""
    report = run.report
    about = (
        f"{run.name} · {report.get('model')} · {report['num_samples']} samples under {report['num_permutations']} "
        f"orders of {run.num_candidates} images"
    )
    found = gain(run)
    title, lead = _alone(run) if found is None else _compared(run, found)
    doubt = warning(run.run.calibration.of_rows(run.run.readout.rows))
    lead = f"{lead} {doubt}" if doubt else lead
    return Headline(about, title, lead, _tiles(run))


def _alone(run: ReportedRun) -> tuple[str, str]:
    accuracy = percent(run.metrics[BASELINE]["accuracy"])
    return f"{BASELINE} {accuracy} %", "No other readout was tested, so the cost of position is not known."


def _compared(run: ReportedRun, found: Difference) -> tuple[str, str]:
    base, best = (run.metrics[name]["accuracy"] for name in (BASELINE, run.headline))
    title = f"{BASELINE} {percent(base)} %, {run.headline} {percent(best)} %"
    ends = sorted(abs(end) for end in (found.low, found.high))
    size = f"{percent(abs(found.mean))} points (95 % interval [{', '.join(map(percent, ends))}])"
    if found.mean == 0:
        verdict = f"{run.headline} and {BASELINE} are correct equally often."
    elif not found.significant:
        verdict = f"{run.headline} differs from {BASELINE} by {points(found.mean)} points, which may be chance."
    elif found.mean > 0:
        verdict = f"Position bias costs this model {size} of accuracy, which {run.headline} recovers."
    else:
        verdict = f"Here {run.headline} does harm: accuracy falls by {size}."
    return title, f"{verdict} {_flips(run)}" if run.prompts.num_permutations > 1 else verdict


def _flips(run: ReportedRun) -> str:
    base, best = (run.metrics[name]["consistency"] for name in (BASELINE, run.headline))
    return (
        f"When only the order of the images changes, {BASELINE} chooses another image in {percent(1 - base, 0)} % "
        f"of the samples, {run.headline} in {percent(1 - best, 0)} %."
    )


def _tiles(run: ReportedRun) -> list[Tile]:
    def tile(name: str, key: str, what: str) -> Tile:
        before = percent(run.metrics[BASELINE][key])
        after = percent(run.metrics[run.headline][key]) if run.others else None
        return Tile(name, before, after, what)

    return [
        tile("Accuracy, %", "accuracy", "correct answers, over all orders of the images"),
        tile("Consistency, %", "consistency", "samples with the same image chosen in every order"),
        tile("RStd, points", "rstd", "how far recall differs from position to position; 0 is no bias"),
    ]
