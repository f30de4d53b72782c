"""A sweep as plots: accuracy over every varied factor, and the readouts side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lad_pl.analysis.sweep.results import LABELS, About, Summary, components, held, series, value_name
from lad_pl.analysis.sweep.settings_grid import FACTORS, Plan
from lad_pl.files import atomic_write

COMPONENTS = "readouts"
_KINDS = ("png", "svg")
# Okabe and Ito's colours, which people with any colour vision can tell apart; related readouts share one, and differ
# in the dash and in filled or hollow markers. No yellow: it is too faint on white.
_STYLES: dict[str, tuple[str, str, str]] = {
    "vanilla": ("#000000", "--", ""),
    "pride": ("#E69F00", "-", "v"),
    "pride_reference": ("#E69F00", ":", "v"),
    "batch_calibration": ("#999999", "-", "P"),
    "raw_attention": ("#56B4E9", "-", "s"),
    "purified_attention": ("#0072B2", "-", "D"),
    "agd": ("#D55E00", "-", "o"),
    "head_information": ("#009E73", "-", "^"),
    "head_information_label_free": ("#009E73", ":", "<"),
    "agd_head": ("#CC79A7", "-", "X"),
    "agd_head_label_free": ("#CC79A7", ":", "X"),
}
_OTHER = ("#444444", "-", "*")
_GRID, _FAINT = "#e4e4e4", "#777777"
_DOTS = (0, (1, 3))
_RECIPES = (
    (None, "any recipe", "D", True, 0.0),
    ("reference", "recipe reference", "o", True, -0.13),
    ("paper", "recipe paper", "o", False, 0.13),
)
_WRAP = 120
_LEAST_RANGE = 20.0  # points of accuracy that an axis shows, so that noise does not look like an effect


def plot_names(plan: Plan, summaries: Sequence[Summary]) -> list[str]:
    """Names, without endings, of the plots that this sweep has."""
    side_by_side = [COMPONENTS] if len(components(plan, summaries)) > 1 else []
    return side_by_side + [
        _name(factor) for factor in plan.varied if factor != "recipe" and series(plan, summaries, factor)
    ]


def write_plots(folder: Path, plan: Plan, summaries: Sequence[Summary], about: About) -> list[str]:
    """Write every plot as PNG and SVG; plots of an earlier sweep that this one does not have are removed.

    Returns:
        Their names, without endings.
    """
    names = plot_names(plan, summaries)
    for stale in {COMPONENTS, *map(_name, FACTORS)} - set(names):
        for kind in _KINDS:
            (folder / f"{stale}.{kind}").unlink(missing_ok=True)
    for name in names:
        with matplotlib.rc_context({"svg.hashsalt": "lad_pl", "text.parse_math": False, "font.size": 9}):
            _save(_figure(name, plan, summaries, about), folder / name)
    return names


def _figure(name: str, plan: Plan, summaries: Sequence[Summary], about: About) -> Figure:
    if name == COMPONENTS:
        return _components(plan, summaries, about)
    factor = next(factor for factor in plan.varied if _name(factor) == name)
    return _over_factor(factor, plan, summaries, about)


def _name(factor: str) -> str:
    return f"accuracy_over_{factor}"


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not once for each kind
    for kind in _KINDS:
        metadata = {"Date": None} if kind == "svg" else {}  # the same sweep, the same file
        with atomic_write(path.with_name(f"{path.name}.{kind}")) as partial:
            figure.savefig(partial, format=kind, dpi=150, metadata=metadata)


# --------------------------------------------------------------------------------------------- accuracy over a factor


def _over_factor(factor: str, plan: Plan, summaries: Sequence[Summary], about: About) -> Figure:
    found = series(plan, summaries, factor)
    figure = _empty(7.6, 4.4, f"{about}. Held: {held(plan, about, factor, _all(found))}.{_spread(_all(found))}")
    axes = figure.add_subplot()
    places = _places(factor, plan.varied[factor])
    for name, by_value in found.items():
        by_place = {place: by_value[value] for value, place in places.items() if value in by_value}
        _line(axes, name, by_place, _joined(factor, by_value))
    _limit(axes)
    _reference_lines(axes, summaries, about)
    axes.set_xlabel(LABELS[factor])
    axes.set_ylabel("accuracy, %")
    _ticks(axes, factor, places)
    _legend(axes)
    return figure


def _line(axes: Axes, name: str, by_place: Mapping[float, Summary], joined: int) -> None:
    colour, dash, marker = _STYLES.get(name, _OTHER)
    places, values = list(by_place), [_shown(summary) for summary in by_place.values()]
    spreads = [100 * (each.std["accuracy"] or 0) for each in by_place.values()]
    axes.plot(places[:joined], values[:joined], color=colour, linestyle=dash, linewidth=1.6)
    marks: dict[str, Any] = {"color": colour, "marker": marker or "o", "markersize": 5}
    marks["markerfacecolor"] = "white" if dash == ":" else colour
    axes.plot(places, values, linestyle="", **marks)
    axes.plot([], [], linestyle=dash, label=name, **marks)
    if any(spreads):
        low, high = ([value + sign * spread for value, spread in zip(values, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(places[:joined], low[:joined], high[:joined], color=colour, alpha=0.15, linewidth=0)


def _places(factor: str, values: Sequence[Any]) -> dict[Any, float]:
    """Where each value stands, from left to right; layers one beside the other, sets of them after a gap."""
    if factor != "layers":
        return {value: float(value) for value in sorted(values)}
    singles = [layers for layers in values if len(layers) == 1]
    several = [layers for layers in values if len(layers) > 1]
    gap = 0.7 if singles else 0.0
    return {layers: place + (gap if place >= len(singles) else 0) for place, layers in enumerate([*singles, *several])}


def _joined(factor: str, by_value: Mapping[Any, Summary]) -> int:
    """How many of the points, from the first, a line joins: single layers, but not sets of layers."""
    return sum(1 for layers in by_value if len(layers) == 1) if factor == "layers" else len(by_value)


def _ticks(axes: Axes, factor: str, places: Mapping[Any, float]) -> None:
    ends = [place for place in places.values() if place > 0]
    if factor not in ("layers", "top_layers", "head_exponent") and max(ends) >= 10 * min(ends):
        axes.set_xscale("log")
        axes.minorticks_off()
    crowded = len(places) > 18
    axes.set_xticks(list(places.values()), list(map(value_name, places)), rotation=60 if crowded else 0)
    axes.tick_params(axis="x", labelsize=7 if crowded else 8)


def _reference_lines(axes: Axes, summaries: Sequence[Summary], about: About) -> None:
    """Vanilla and chance, where they lie within what is shown; their figures in the legend in any case."""
    colour, dash, _ = _STYLES["vanilla"]
    lines: list[tuple[str, float, str, Any]] = [("chance", 100 / about.num_candidates, _FAINT, _DOTS)]
    lines += [("vanilla", _shown(each), colour, dash) for each in summaries if each.setting.readout == "vanilla"]
    low, high = axes.get_ylim()
    for name, value, colour, dash in reversed(lines):
        where = "" if low <= value <= high else ", below" if value < low else ", above"
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.2}
        axes.plot([], [], label=f"{name} ({value:.1f}{where})", **style)
        if not where:
            axes.axhline(value, **style)


def _limit(axes: Axes) -> None:
    """Show what was found, and at least ``_LEAST_RANGE`` points of accuracy."""
    low, high = axes.get_ylim()
    more = max(0.0, _LEAST_RANGE - (high - low)) / 2
    low, high = low - more, high + more
    over = max(0.0, high - 101.5)
    axes.set_ylim(max(low - over, -1.5), min(high, 101.5))


# ------------------------------------------------------------------------------------------------ readouts side by side


def _components(plan: Plan, summaries: Sequence[Summary], about: About) -> Figure:
    found = components(plan, summaries)
    rows = list(dict.fromkeys(summary.setting.readout for summary in found))
    caption = f"{about}. Held: {held(plan, about, 'recipe', found)}. Bars: std over permutations."
    figure = _empty(7.6, 1.7 + 0.33 * len(rows), caption)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, metric in ((left, "accuracy"), (right, "consistency")):
        _points(axes, found, rows, metric)
        axes.set_xlabel(f"{metric}, %")
        axes.set_xlim(-3, 103)
    left.axvline(100 / about.num_candidates, color=_FAINT, linestyle=_DOTS, linewidth=1.2, label="chance")
    left.set_yticks(range(len(rows)), rows)
    left.invert_yaxis()
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=8)
    return figure


def _points(axes: Axes, found: Sequence[Summary], rows: Sequence[str], metric: str) -> None:
    for recipe, label, marker, filled, shift in _RECIPES:
        shown = [summary for summary in found if summary.setting.recipe == recipe]
        for summary in shown:
            colour = _STYLES.get(summary.setting.readout, _OTHER)[0]
            spread = summary.mean["accuracy_std"] if metric == "accuracy" else None
            place = rows.index(summary.setting.readout) + shift
            style: dict[str, Any] = {"color": colour, "markerfacecolor": colour if filled else "white"}
            style |= {"marker": marker, "markersize": 5.5, "capsize": 2}
            axes.errorbar(_shown(summary, metric), place, xerr=None if spread is None else 100 * spread, **style)
        if shown:
            face = "#444444" if filled else "white"
            axes.plot([], [], linestyle="", marker=marker, color="#444444", label=label, markerfacecolor=face)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)


# --------------------------------------------------------------------------------------------------------------- frame


def _empty(width: float, height: float, caption: str) -> Figure:
    """A figure with its caption below."""
    lines = textwrap.wrap(caption, _WRAP)
    below = (0.06 + 0.17 * len(lines)) / height
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0, below, 1, 1 - below)))
    figure.text(0.012, 0.05 / height, "\n".join(lines), fontsize=8, color="#444444", verticalalignment="bottom")
    return figure


def _legend(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)


def _all(found: Mapping[str, Mapping[Any, Summary]]) -> list[Summary]:
    return [summary for by_value in found.values() for summary in by_value.values()]


def _shown(summary: Summary, metric: str = "accuracy") -> float:
    return 100 * (summary.mean[metric] or 0.0)


def _spread(shown: Sequence[Summary]) -> str:
    most = max(summary.num_draws for summary in shown)
    return f" Bands: std over up to {most} draws of calibration samples." if most > 1 else ""
