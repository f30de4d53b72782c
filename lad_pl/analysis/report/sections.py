"""The sections of the page about one run: each figure with its finding, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lad_pl.analysis.bootstrap import Difference
from lad_pl.analysis.plot_style import Plot
from lad_pl.analysis.report import figures
from lad_pl.analysis.report.profiles import (
    attention_shares,
    confusion_shares,
    found_when_wrong,
    layer_accuracy,
    log_odds,
    mean_by_target,
    reliability,
)
from lad_pl.analysis.report.reported_run import BASELINE, ReportedRun
from lad_pl.analysis.report.results import (
    Differences,
    differences,
    differences_table,
    recall_table,
    reliability_table,
)
from lad_pl.analysis.table import Table, interval, percent, points
from lad_pl.calibrate import lines


@dataclass(frozen=True)
class Picture:
    """A figure that another command has drawn."""

    name: str
    uri: str
    """The figure itself, as a data URI."""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()


def run_sections(run: ReportedRun) -> list[Section]:
    """The sections that need no other run."""
    return [
        Section("answers", "Answers by position", confusion_plots(run)),
        Section("logits", "Logits by position", [profile_plot(run)]),
        Section("attention", "Attention by position", [attention_plot(run)], notes=_known(run)),
        Section("recall", "Recall by position", [recall_plot(run)], [recall_table(run)]),
        *_difference_sections(run),
        *_reliability_sections(run),
    ]


def pair(run: ReportedRun) -> list[str]:
    """The baseline and the headline method; the baseline alone where there is no other."""
    return [*dict.fromkeys((BASELINE, run.headline))]


def confusion_plots(run: ReportedRun) -> list[Plot]:
    """Figure 1, and the same of every method."""
    targets, n = run.prompts.targets, run.num_candidates
    shares = {name: confusion_shares(run.choices[name], targets, n) for name in run.methods}
    chosen = torch.bincount(run.choices[BASELINE].clamp_min(0), minlength=n).double() / len(targets)
    there = torch.bincount(targets, minlength=n).double() / len(targets)
    most = int((chosen - there).argmax())
    title = (
        f"{BASELINE} points at position {most + 1} in {percent(float(chosen[most]), 0)} % of the prompts; the "
        f"correct image stands there in {percent(float(there[most]), 0)} %."
        if chosen[most] > there[most]
        else f"{BASELINE} points at every position as often as the correct image stands there."
    )
    reading = (
        "Rows: where the correct image stood. Columns: which position was chosen, in % of the row. Without bias, what "
        "is off the diagonal is spread evenly; a full column is a position that attracts answers."
    )
    plots = [Plot("confusion", figures.confusion_figure({name: shares[name] for name in pair(run)}), title, reading)]
    if len(shares) > 2:
        figure = figures.confusion_figure(shares)
        plots.append(Plot("confusion_all", figure, "The same for every method.", "Rows and columns as above."))
    return plots


def _known(run: ReportedRun) -> list[str]:
    """What the calibration samples tell about the attention; nothing where an earlier version made the calibration."""
    calibration = run.run.calibration.of_rows(run.run.readout.rows)
    return [] if calibration.diagnosis is None else [f"{line}." for line in lines(calibration)]


def profile_plot(run: ReportedRun) -> Plot:
    """Figure 2."""
    names = [name for name in pair(run) if name in run.log_probs]
    profiles = {name: mean_by_target(log_odds(run.log_probs[name]), run.prompts.targets) for name in names}
    positions = torch.arange(run.num_candidates)
    peaks = {name: int((values.argmax(1) == positions).sum()) for name, values in profiles.items()}
    where = ", ".join(f"in {count} of {run.num_candidates} positions with {name}" for name, count in peaks.items())
    return Plot(
        "profiles",
        figures.profile_figure(profiles),
        f"On average the logits are highest for the correct image {where}.",
        "One panel for each position of the correct image, which is shaded. A line is the mean log-odds of every "
        "position against the average one, in nats: it should peak in the shade. A shape that all panels share is "
        "position bias.",
    )


def attention_plot(run: ReportedRun) -> Plot:
    """Figure 3."""
    prompts = run.prompts
    attention = prompts.evidence.layer_attention
    shares = attention_shares(attention, run.run.readout.top_layers)
    by_layer = {
        "attention": layer_accuracy(attention, prompts.targets),
        "attention ÷ prior": layer_accuracy(attention, prompts.targets, run.run.calibration.attention_prior),
    }
    wrong = run.choices[BASELINE] != prompts.targets
    found = found_when_wrong(~wrong, shares.argmax(-1) == prompts.targets)
    figure = figures.attention_figure(
        mean_by_target(run.log_probs[BASELINE].exp(), prompts.targets),
        mean_by_target(shares, prompts.targets),
        run.report["layers"],
        by_layer,
        run.metrics[BASELINE]["accuracy"],
    )
    return Plot(
        "attention",
        figure,
        f"In {percent(found, 0)} % of the prompts that {BASELINE} gets wrong, attention is largest on the correct "
        "image."
        if wrong.any()
        else f"{BASELINE} gets no prompt wrong.",
        f"Left: the mean probability of each position, by where the correct image stood. Middle: the share of the "
        f"attention on the images that each position has, in the {run.run.readout.top_layers} layers that look at them "
        "most. Right: how often a layer's attention is largest on the correct image; dotted, after dividing by the "
        "calibrated prior.",
    )


def recall_plot(run: ReportedRun) -> Plot:
    """Recall by position."""
    recall: dict[str, Sequence[float | None]] = {
        name: run.metrics[name]["recall_by_position"] for name in dict.fromkeys((*pair(run), *run.methods))
    }
    ranges = [f"{name} finds {_range(recall[name])}" for name in pair(run)]
    return Plot(
        "recall",
        figures.recall_figure(recall),
        f"Of the correct images, {'; '.join(ranges)}.",
        "Share of correct answers by where the correct image stood. Without position bias the line is flat. Below, the "
        "same for every method, in %.",
    )


def all_differences(run: ReportedRun) -> dict[str, Differences]:
    """Every method against the baseline, and the headline method against the others."""
    found: dict[str, Differences] = {BASELINE: differences(run, BASELINE)}
    if len(run.others) > 1:
        against = differences(run, run.headline)
        found[run.headline] = {name: difference for name, difference in against.items() if name != BASELINE}
    return found


def gain(run: ReportedRun) -> Difference | None:
    """Accuracy of the headline method less that of the baseline."""
    return differences(run, BASELINE).get(run.headline)


def _difference_sections(run: ReportedRun) -> list[Section]:
    if not run.others:
        return []
    against = all_differences(run)
    found = against[BASELINE][run.headline]
    verdict = "is more than chance" if found.significant else "may be chance"
    plot = Plot(
        "differences",
        figures.difference_figure(against),
        f"{run.headline} against {BASELINE}: {points(found.mean)} points (95 % interval {interval(found)}), which "
        f"{verdict}.",
        "Dots: difference of accuracy. Bars: 95 % interval, samples resampled with all their orders. Coloured where "
        "the interval leaves out zero.",
    )
    return [Section("differences", "Significance of the differences", [plot], [differences_table(against)])]


def _reliability_sections(run: ReportedRun) -> list[Section]:
    names = run.calibrated_probabilities
    curves = {name: reliability(run.log_probs[name], run.prompts.targets) for name in names}
    shown = {name: curves[name] for name in pair(run) if name in curves}
    claims = [
        f"{name} claims to be correct in {percent(curve.mean_confidence, 0)} % and is in "
        f"{percent(curve.mean_accuracy, 0)} %"
        for name, curve in shown.items()
    ]
    plot = Plot(
        "reliability",
        figures.reliability_figure(shown),
        f"{'; '.join(claims)}.",
        "How often answers of one probability are correct; larger dots stand for more prompts. On the dashed line "
        "probability and accuracy are equal; below it, the answers are too confident.",
    )
    return [Section("reliability", "Calibration of the probabilities", [plot], [reliability_table(curves)])]


def _range(recall: Sequence[float | None]) -> str:
    known: Mapping[int, float] = {position: value for position, value in enumerate(recall, 1) if value is not None}
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if known[low] == known[high]:
        return f"{percent(known[low], 0)} % everywhere"
    return f"{percent(known[low], 0)} % (position {low}) to {percent(known[high], 0)} % (position {high})"
