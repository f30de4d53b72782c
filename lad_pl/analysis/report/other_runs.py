"""Several runs on one page: accuracy by the number of images, run beside run, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from matplotlib.figure import Figure

from lad_pl.analysis.bootstrap import paired_bootstrap
from lad_pl.analysis.plot_style import CORRECTED, LINE, MUTED, VANILLA, Plot, axes_grid, method_styles
from lad_pl.analysis.report.reported_run import BASELINE, ReportedRun
from lad_pl.analysis.report.results import runs_table
from lad_pl.analysis.report.sections import Section, pair
from lad_pl.analysis.table import MINUS, Table, interval, p_value, percent, points


def other_runs_section(runs: Sequence[ReportedRun]) -> Section:
    """What further runs add to the page of the first, or how to add some."""
    first, *others = runs
    if not others:
        note = f"Only one run is shown. python -m lad_pl report {first.run.path} RUN2 RUN3 sets others beside it."
        return Section("runs", "Other runs", notes=[note])
    sizes = [run.num_candidates for run in runs]
    plots = [_by_number_plot(runs)] if len(set(sizes)) == len(sizes) else []
    alike = [run for run in others if first.same_prompts(run)]
    strange = ", ".join(run.name for run in others if run not in alike)
    notes = [f"Asked other prompts than {first.name}, and so not compared prompt by prompt: {strange}."] * bool(strange)
    tables = [runs_table(runs), *([_between_runs(first, alike)] if alike else [])]
    return Section("runs", "Other runs", [*plots, _runs_plot(runs)], tables, notes=notes)


def _by_number_plot(runs: Sequence[ReportedRun]) -> Plot:
    """Figure 5."""
    headline = pair(runs[0])
    runs = sorted(runs, key=lambda run: run.num_candidates)
    shared = [name for name in runs[0].methods if all(name in run.methods for run in runs)]
    fewest, most = runs[0], runs[-1]
    changes = [
        f"{name} goes from {percent(fewest.metrics[name]['accuracy'], 0)} to "
        f"{percent(most.metrics[name]['accuracy'], 0)} %"
        for name in headline
        if name in shared
    ]
    return Plot(
        "accuracy_by_n",
        _by_number_figure(runs, sorted(shared, key=lambda name: name not in headline)),
        f"From {fewest.num_candidates} images to {most.num_candidates}, {', '.join(changes)}.",
        "Accuracy by the number of images in a prompt; bars: standard deviation over the orders. Dashed: chance.",
    )


def _by_number_figure(runs: Sequence[ReportedRun], methods: Sequence[str]) -> Figure:
    figure, (ax,) = axes_grid(3.4)
    sizes = [run.num_candidates for run in runs]
    for number, (name, look) in enumerate(method_styles(methods).items()):
        values = [100 * run.metrics[name]["accuracy"] for run in runs]
        spread = [100 * (run.metrics[name]["accuracy_std"] or 0) for run in runs]
        width = 2.4 if number < 2 else 1.1
        ax.errorbar(sizes, values, spread, color=look.colour, label=name, marker="o", markersize=4, linewidth=width)
    ax.plot(sizes, [100 / size for size in sizes], color=MUTED, linestyle="--", linewidth=1, label="chance")
    ax.set(xticks=sizes, ylim=(0, 102), xlabel="number of images", ylabel="accuracy, %")
    ax.grid(True)
    (chance, *handles), (_, *labels) = ax.get_legend_handles_labels()
    ax.legend([*handles, chance], [*labels, "chance"], loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _runs_plot(runs: Sequence[ReportedRun]) -> Plot:
    gains = [run.metrics[run.headline]["accuracy"] - run.metrics[BASELINE]["accuracy"] for run in runs]
    most = max(range(len(runs)), key=gains.__getitem__)
    figure, (ax,) = axes_grid(0.3 * len(runs) + 0.9)
    for row, run in enumerate(runs):
        before, after = (100 * run.metrics[name]["accuracy"] for name in (BASELINE, run.headline))
        ax.plot([before, after], [row, row], color=LINE, linewidth=4, solid_capstyle="round")
        ax.plot([before], [row], "o", color=VANILLA, markersize=8, label=None if row else BASELINE)
        ax.plot([after], [row], "o", color=CORRECTED, markersize=8, label=None if row else run.headline)
    ax.set_yticks(range(len(runs)), [f"{run.name} (N = {run.num_candidates})" for run in runs])
    ax.set(ylim=(len(runs) - 0.5, -0.5), xlim=(0, 100), xlabel="accuracy, %")
    ax.grid(True, axis="x")
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return Plot(
        "runs",
        figure,
        f"The correction changes most in {runs[most].name}: {points(gains[most])} points.",
        "One line per run, from the accuracy of the answers as the model gives them to the corrected ones.",
    )


def _between_runs(first: ReportedRun, others: Sequence[ReportedRun]) -> Table:
    """Differences between runs of the same prompts, method by method."""
    found = [
        (name, run, paired_bootstrap(run.correct(name), first.correct(name)))
        for run in others
        for name in first.methods
        if name in run.methods
    ]
    records: list[Mapping[str, object]] = [
        {"method": name, "run": run.name, "against": first.name, **asdict(difference)}
        for name, run, difference in found
    ]
    return Table(
        name="between_runs",
        caption=f"Accuracy of the other runs less that of {first.name}, in points, on the same prompts: paired "
        "bootstrap over samples, 95 % interval.",
        columns=["comparison", "difference", "95 % interval", "p"],
        rows=[
            [f"{name}: {run.name} {MINUS} {first.name}", points(difference.mean), interval(difference),
             p_value(difference.p)]
            for name, run, difference in found
        ],
        records=records,
    )  # fmt: skip
