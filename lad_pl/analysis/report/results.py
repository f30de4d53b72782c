"""The figures of a run as tables: metrics in the paper's layout, recall, differences, reliability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lad_pl.analysis import table
from lad_pl.analysis.bootstrap import Difference, paired_bootstrap
from lad_pl.analysis.report.profiles import Reliability
from lad_pl.analysis.report.reported_run import ReportedRun
from lad_pl.analysis.table import MINUS, Table, interval, mean_and_std, p_value, percent, points

Differences = Mapping[str, Difference]
_ABOUT = (
    "Accuracy: mean ± standard deviation over the orders of the images. RStd: standard deviation of recall over "
    "positions. Consistency: the same image in every order. Circular: correct in every order. Forwards and seconds: "
    "forward passes of the language model and time, per prompt; readouts share one pass."
)


def results_table(run: ReportedRun) -> Table:
    """One row per method: accuracy ± std, RStd, consistency, circular accuracy, passes, seconds; the best in bold."""
    costs = run.run.costs["methods"]
    keys = ["rstd", "consistency", "circular_accuracy"]
    if any(values.get("success_rate", 1) < 1 for values in run.metrics.values()):
        keys.append("success_rate")
    rows = [
        [
            name,
            mean_and_std(values["accuracy"], values["accuracy_std"]),
            *(percent(values[key]) for key in keys),
            *(_cost(costs.get(name), key, form) for key, form in (("forwards", "{:.3g}"), ("seconds", "{:.3g}"))),
        ]
        for name, values in run.metrics.items()
    ]
    headings = {
        "rstd": "RStd",
        "consistency": "consistency",
        "circular_accuracy": "circular",
        "success_rate": "success",
    }
    scalars = ("accuracy", "accuracy_std", *keys)
    return Table(
        name="results",
        caption=f"{_asked(run)} All but forwards and seconds in %. {_ABOUT}",
        columns=["method", "accuracy", *(headings[key] for key in keys), "forwards", "seconds"],
        rows=rows,
        records=[
            {
                "method": name,
                **{key: values.get(key) for key in scalars},
                **{key: costs.get(name, {}).get(key) for key in ("forwards", "seconds")},
            }
            for name, values in run.metrics.items()
        ],
        best=_best(run, ["accuracy", *keys]),
    )


def recall_table(run: ReportedRun) -> Table:
    """One row per method, one column per position of the correct image."""
    report = {"num_candidates": run.num_candidates, "readouts": run.metrics}
    caption = "Share of correct answers in %, by the position of the correct image."
    return replace(table.recall_table(report, heading="method", digits=1), caption=caption)


def differences(run: ReportedRun, base: str) -> dict[str, Difference]:
    """Every other method's accuracy less that of ``base``, by a paired bootstrap over samples."""
    return {name: paired_bootstrap(run.correct(name), run.correct(base)) for name in run.methods if name != base}


def differences_table(against: Mapping[str, Differences]) -> Table:
    """Differences of accuracy in points, with interval and p.

    Args:
        against: what every method is compared with -> the differences by method.
    """
    pairs = [(name, base, found) for base, by_method in against.items() for name, found in by_method.items()]
    return Table(
        name="differences",
        caption="Differences of accuracy in points, with 95 % interval and two-sided p: paired bootstrap over samples, "
        "10,000 draws; the orders of one sample are drawn together. Each comparison stands alone.",
        columns=["comparison", "difference", "95 % interval", "p"],
        rows=[
            [f"{name} {MINUS} {base}", points(found.mean), interval(found), p_value(found.p)]
            for name, base, found in pairs
        ],
        records=[{"method": name, "against": base, **asdict(found)} for name, base, found in pairs],
    )


def reliability_table(found: Mapping[str, Reliability]) -> Table:
    """Expected calibration error, mean confidence and accuracy of every method that gives probabilities."""
    return Table(
        name="reliability",
        caption="Expected calibration error over ten bins: how far, on average, the probability of the chosen answer "
        "is from the share of correct answers. All in %.",
        columns=["method", "calibration error", "mean confidence", "accuracy"],
        rows=[
            [name, percent(curve.error), percent(curve.mean_confidence), percent(curve.mean_accuracy)]
            for name, curve in found.items()
        ],
        records=[
            {
                "method": name,
                "calibration_error": curve.error,
                "confidence": curve.mean_confidence,
                "accuracy": curve.mean_accuracy,
            }
            for name, curve in found.items()
        ],
    )


def runs_table(runs: Sequence[ReportedRun]) -> Table:
    """Several runs, one row each: accuracy and RStd of the baseline and of the headline method."""
    rows, records = [], []
    for run in runs:
        base, best = run.metrics[run.methods[0]], run.metrics[run.headline]
        rows.append(
            [run.name, str(run.report.get("model")), str(run.num_candidates), str(run.report["num_samples"]),
             percent(base["accuracy"]), percent(base["rstd"]), run.headline, percent(best["accuracy"]),
             percent(best["rstd"])]
        )  # fmt: skip
        records += [
            {"run": run.name, "model": run.report.get("model"), "num_candidates": run.num_candidates,
             "num_samples": run.report["num_samples"], "method": name,
             **{key: values[key] for key in ("accuracy", "accuracy_std", "rstd", "consistency", "circular_accuracy")}}
            for name, values in run.metrics.items()
        ]  # fmt: skip
    headings = ["run", "model", "N", "samples", "vanilla", "RStd", "corrected by", "accuracy", "RStd"]
    return Table("runs", headings, rows, "Accuracy and RStd of every run, in %.", records=records)


def _asked(run: ReportedRun) -> str:
    report = run.report
    return (
        f"{report['num_samples']} samples, each under {report['num_permutations']} orders of {run.num_candidates} "
        f"images; calibrated on {report['num_calibration_samples']} samples."
    )


def _cost(costs: Mapping[str, Any] | None, key: str, form: str) -> str:
    return "-" if costs is None else form.format(costs[key])


def _best(run: ReportedRun, keys: Sequence[str]) -> frozenset[tuple[int, int]]:
    """Cells of the best value of each column."""
    cells = set()
    for column, key in enumerate(keys, 1):
        values = [entry.get(key) for entry in run.metrics.values()]
        choose: Callable[..., float] = min if key == "rstd" else max
        known = [value for value in values if value is not None]
        if len(set(known)) > 1:
            cells |= {(row, column) for row, value in enumerate(values) if value == choose(known)}
    return frozenset(cells)
