"""A sweep as plots: accuracy over every varied factor, and the readouts side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad_pl.analysis.plot_style import INK, MUTED, MethodStyle, Plot, axes_grid, method_styles, save, style
from lad_pl.analysis.sweep.results import LABELS, Summary, SweptRun, components, held_label, series, value_label
from lad_pl.analysis.sweep.settings_grid import SettingsGrid
from lad_pl.readouts import FACTORS

SIDE_BY_SIDE = "readouts"
_DOTS = (0, (1, 3))
_RECIPES = (
    (None, "any recipe", "D", True, 0.0),
    ("reference", "recipe reference", "o", True, -0.13),
    ("paper", "recipe paper", "o", False, 0.13),
)
_CAPTION_WIDTH = 104  # characters
_LEAST_RANGE = 20.0  # points of accuracy that an axis shows, so that noise does not look like an effect


def write_plots(folder: Path, grid: SettingsGrid, summaries: Sequence[Summary], run: SweptRun) -> list[str]:
    """Write every plot as PNG and SVG; plots of an earlier sweep that this one does not have are removed.

    Returns:
        Their names, without endings.
    """
    with style():
        plots = make_plots(grid, summaries, run)
        for plot in plots:
            save(plot, folder)
    names = [plot.name for plot in plots]
    for stale in {SIDE_BY_SIDE, *map(_name, FACTORS)} - set(names):
        for ending in ("png", "svg"):
            (folder / f"{stale}.{ending}").unlink(missing_ok=True)
    return names


def make_plots(grid: SettingsGrid, summaries: Sequence[Summary], run: SweptRun) -> list[Plot]:
    """The readouts side by side, where there are several, and accuracy over every varied factor."""
    factors = [
        factor for factor in grid.varied if factor not in ("recipe", "head_score") and series(grid, summaries, factor)
    ]
    side_by_side = [_components_plot(grid, summaries, run)] if len(components(grid, summaries)) > 1 else []
    return [*side_by_side, *(_factor_plot(factor, grid, summaries, run) for factor in factors)]


def _name(factor: str) -> str:
    return f"accuracy_over_{factor}"


def _styles(summaries: Sequence[Summary]) -> dict[str, MethodStyle]:
    return method_styles(summary.setting.readout for summary in summaries)


# --------------------------------------------------------------------------------------------- accuracy over a factor


def _factor_plot(factor: str, grid: SettingsGrid, summaries: Sequence[Summary], run: SweptRun) -> Plot:
    found = series(grid, summaries, factor)
    shown = [summary for by_value in found.values() for summary in by_value.values()]
    figure, (axes,) = axes_grid(4.4)
    _caption(figure, f"{run}. Held: {held_label(grid, run, factor, shown)}.{_bands(shown)}")
    positions = _positions(factor, grid.varied[factor])
    styles = _styles(summaries)
    for name, by_value in found.items():
        points = {position: by_value[value] for value, position in positions.items() if value in by_value}
        _line(axes, name, styles[name], points, _joined(factor, by_value))
    _limit(axes)
    _reference_lines(axes, summaries, run)
    axes.set_xlabel(LABELS[factor])
    axes.set_ylabel("accuracy, %")
    _ticks(axes, factor, positions)
    axes.grid(True, axis="both")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    return Plot(_name(factor), figure)


def _line(axes: Axes, name: str, look: MethodStyle, points: Mapping[float, Summary], joined: int) -> None:
    positions, values = list(points), [_shown(summary) for summary in points.values()]
    spreads = [100 * (each.std["accuracy"] or 0) for each in points.values()]
    axes.plot(positions[:joined], values[:joined], color=look.colour, linestyle=look.dash, linewidth=1.6)
    marks: dict[str, Any] = {"color": look.colour, "marker": look.marker or "o", "markersize": 5}
    marks["markerfacecolor"] = "white" if look.dash == ":" else look.colour
    axes.plot(positions, values, linestyle="", **marks)
    axes.plot([], [], linestyle=look.dash, linewidth=1.6, label=name, **marks)
    if any(spreads):
        low, high = ([value + sign * spread for value, spread in zip(values, spreads, strict=True)] for sign in (-1, 1))
        band: dict[str, Any] = {"color": look.colour, "alpha": 0.15, "linewidth": 0}
        axes.fill_between(positions[:joined], low[:joined], high[:joined], **band)


def _positions(factor: str, values: Sequence[Any]) -> dict[Any, float]:
    """Where each value stands on the axis, in rising order; single layers, then after a gap sets of layers."""
    if factor != "layers":
        return {value: float(value) for value in sorted(values)}
    singles = [layers for layers in values if len(layers) == 1]
    several = [layers for layers in values if len(layers) > 1]
    gap = 0.7 if singles else 0.0
    return {layers: at + (gap if at >= len(singles) else 0) for at, layers in enumerate([*singles, *several])}


def _joined(factor: str, by_value: Mapping[Any, Summary]) -> int:
    """How many of the points, from the first, a line joins: single layers, but not sets of layers."""
    return sum(1 for layers in by_value if len(layers) == 1) if factor == "layers" else len(by_value)


def _ticks(axes: Axes, factor: str, positions: Mapping[Any, float]) -> None:
    ends = [position for position in positions.values() if position > 0]
    if factor not in ("layers", "top_layers", "head_exponent") and max(ends) >= 10 * min(ends):
        axes.set_xscale("log")
        axes.minorticks_off()
    crowded = len(positions) > 18
    axes.set_xticks(list(positions.values()), list(map(value_label, positions)), rotation=60 if crowded else 0)
    axes.tick_params(axis="x", labelsize=7 if crowded else 8)


def _reference_lines(axes: Axes, summaries: Sequence[Summary], run: SweptRun) -> None:
    """Vanilla and chance, where they lie within what is shown; their figures in the legend in any case."""
    vanilla = method_styles(["vanilla"])["vanilla"]
    lines: list[tuple[str, float, str, Any]] = [("chance", 100 / run.num_candidates, MUTED, _DOTS)]
    lines += [
        ("vanilla", _shown(each), vanilla.colour, vanilla.dash)
        for each in summaries
        if each.setting.readout == "vanilla"
    ]
    low, high = axes.get_ylim()
    for name, value, colour, dash in reversed(lines):
        where = "" if low <= value <= high else ", below" if value < low else ", above"
        look: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.2}
        axes.plot([], [], label=f"{name} ({value:.1f}{where})", **look)
        if not where:
            axes.axhline(value, **look)


def _limit(axes: Axes) -> None:
    """Show what was found, and at least ``_LEAST_RANGE`` points of accuracy."""
    low, high = axes.get_ylim()
    more = max(0.0, _LEAST_RANGE - (high - low)) / 2
    low, high = low - more, high + more
    over = max(0.0, high - 101.5)
    axes.set_ylim(max(low - over, -1.5), min(high, 101.5))


# ------------------------------------------------------------------------------------------------ readouts side by side


def _components_plot(grid: SettingsGrid, summaries: Sequence[Summary], run: SweptRun) -> Plot:
    found = components(grid, summaries)
    rows = list(dict.fromkeys(summary.setting.readout for summary in found))
    figure, (first, second) = axes_grid(1.7 + 0.33 * len(rows), 1, 2, sharey=True)
    _caption(figure, f"{run}. Held: {held_label(grid, run, 'recipe', found)}. Bars: std over permutations.")
    for axes, metric in ((first, "accuracy"), (second, "consistency")):
        _dots(axes, found, rows, metric, _styles(summaries))
        axes.set_xlabel(f"{metric}, %")
        axes.set_xlim(-3, 103)
        axes.grid(True, axis="both")
    first.axvline(100 / run.num_candidates, color=MUTED, linestyle=_DOTS, linewidth=1.2, label="chance")
    first.set_yticks(range(len(rows)), rows)
    first.invert_yaxis()
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper right", ncols=4, fontsize=8)
    return Plot(SIDE_BY_SIDE, figure)


def _dots(
    axes: Axes, found: Sequence[Summary], rows: Sequence[str], metric: str, styles: Mapping[str, MethodStyle]
) -> None:
    for recipe, label, marker, filled, shift in _RECIPES:
        shown = [summary for summary in found if summary.setting.recipe == recipe]
        for summary in shown:
            colour = styles[summary.setting.readout].colour
            spread = summary.mean["accuracy_std"] if metric == "accuracy" else None
            row = rows.index(summary.setting.readout) + shift
            look: dict[str, Any] = {"color": colour, "markerfacecolor": colour if filled else "white"}
            look |= {"marker": marker, "markersize": 5.5, "capsize": 2}
            axes.errorbar(_shown(summary, metric), row, xerr=None if spread is None else 100 * spread, **look)
        if shown:
            face = MUTED if filled else "white"
            axes.plot([], [], linestyle="", marker=marker, color=MUTED, label=label, markerfacecolor=face)


# -------------------------------------------------------------------------------------------------------------- shared


def _caption(figure: Figure, caption: str) -> None:
    """Write a caption below the axes: these files are also shown without any text around them."""
    lines = textwrap.wrap(caption, _CAPTION_WIDTH)
    height = figure.get_figheight()
    below = (0.06 + 0.17 * len(lines)) / height
    figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))  # type: ignore[union-attr, call-arg]
    figure.text(0.012, 0.05 / height, "\n".join(lines), fontsize=8, color=INK, verticalalignment="bottom")


def _shown(summary: Summary, metric: str = "accuracy") -> float:
    return 100 * (summary.mean[metric] or 0.0)


def _bands(shown: Sequence[Summary]) -> str:
    most = max(summary.num_subsets for summary in shown)
    return f" Bands: std over up to {most} calibration subsets." if most > 1 else ""
