"""The figures of one run: confusion, logit profiles, attention against logits, recall, differences, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lad_pl.analysis.bootstrap import Difference
from lad_pl.analysis.plot_style import (
    ATTENTION,
    CORRECTED,
    INK,
    LINE,
    MUTED,
    VANILLA,
    axes_grid,
    shades,
)
from lad_pl.analysis.report.profiles import Reliability

_DARK = 0.8  # from here on a cell's number is white
_COLUMNS = 4
_CROWDED = 8
"""From more positions on, not every one has a number on the axis."""


def confusion_figure(shares: Mapping[str, Tensor]) -> Figure:
    """Figure 1: where each method's answers go, by position of the correct image.

    Args:
        shares: (N, N) by method, the baseline first; see :func:`lad_pl.analysis.report.profiles.confusion_shares`.
    """
    columns = min(len(shares), 3)
    numbers = columns < 3 or len(next(iter(shares.values()))) <= _CROWDED
    rows = -(-len(shares) // columns)
    figure, axes = axes_grid(2.2 + 2.1 * (rows - 1) if columns > 2 else 3.2, rows, columns)
    for number, (ax, (name, values)) in enumerate(zip(axes, shares.items(), strict=False)):
        heat_map(ax, values, VANILLA if number == 0 else CORRECTED, numbers=numbers)
        ax.set_title(name)
        ax.set_xlabel("chosen position")
        if number % columns == 0:
            ax.set_ylabel("correct image at")
    for ax in axes[len(shares) :]:
        ax.remove()
    return figure


def profile_figure(profiles: Mapping[str, Tensor]) -> Figure:
    """Figure 2: mean log-odds of every position, one panel per position of the correct image.

    Args:
        profiles: (N, N) of the baseline and of the headline method; rows are positions of the correct image.
    """
    size = len(next(iter(profiles.values())))
    columns = min(size, _COLUMNS)
    rows = -(-size // columns)
    figure, axes = axes_grid(1.55 * rows + 0.45, rows, columns, sharex=True, sharey=True)
    positions = range(1, size + 1)
    for target, ax in enumerate(axes[:size]):
        ax.axvspan(target + 0.5, target + 1.5, color=LINE, alpha=0.5, linewidth=0)
        for (name, values), colour in zip(profiles.items(), (VANILLA, CORRECTED), strict=False):
            ax.plot(positions, values[target], color=colour, marker="o", markersize=4, label=name)
        ax.set_title(f"correct image at {target + 1}")
        ax.set_xticks(_labelled(size))
        ax.grid(True)
        if target % columns == 0:
            ax.set_ylabel("log-odds")
        if target >= size - columns:
            ax.set_xlabel("position")
    for ax in axes[size:]:
        ax.remove()
    _legend_above(figure, axes[0])
    return figure


def attention_figure(
    probabilities: Tensor, attention: Tensor, layers: Sequence[int], by_layer: Mapping[str, Tensor], accuracy: float
) -> Figure:
    """Figure 3: probability and attention by position, and how often each layer's attention finds the correct image.

    Args:
        probabilities: (N, N) mean probability of every position, rows are positions of the correct image.
        attention: (N, N) mean share of attention.
        layers: numbers of the L captured layers.
        by_layer: (L,) share of prompts with attention largest on the correct image, by what it is of.
        accuracy: of the baseline.
    """
    figure, axes = axes_grid(2.6, 1, 3, width_ratios=[1, 1, 1.35])
    for ax, values, colour, title in (
        (axes[0], probabilities, VANILLA, "probability"),
        (axes[1], attention, ATTENTION, "attention"),
    ):
        heat_map(ax, values, colour)
        ax.set_title(title)
        ax.set_xlabel("position")
    axes[0].set_ylabel("correct image at")
    _layers(axes[2], layers, by_layer, accuracy, 1 / len(probabilities))
    return figure


def recall_figure(recall: Mapping[str, Sequence[float | None]]) -> Figure:
    """Share of correct answers by position of the correct image: two lines, and every method as a row of cells.

    Args:
        recall: (N,) by method, the baseline first, the headline second.
    """
    table = torch.tensor([[float("nan") if value is None else value for value in row] for row in recall.values()])
    size = table.shape[1]
    figure, (ax, cells) = axes_grid(2 + 0.24 * len(recall) + 0.5, 2, 1, height_ratios=[2, 0.24 * len(recall) + 0.1])
    positions = range(1, size + 1)
    for name, values, colour in zip([*recall][:2], 100 * table, (VANILLA, CORRECTED), strict=False):
        ax.plot(positions, values, color=colour, marker="o", markersize=5, label=name, clip_on=False, zorder=3)
    ax.axhline(100 / size, color=MUTED, linewidth=1, linestyle="--")
    ax.annotate("chance", (size + 0.45, 100 / size), color=MUTED, ha="right", va="bottom", fontsize=8)
    ax.set(xlim=(0.5, size + 0.5), ylim=(0, 100), xticks=positions, ylabel="correct answers, %")
    ax.grid(True)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    heat_map(cells, table, CORRECTED, square=False)
    cells.set_yticks([row + 0.5 for row in range(len(recall))], [*recall])
    cells.set_xlabel("position of the correct image")
    return figure


def difference_figure(against: Mapping[str, Mapping[str, Difference]]) -> Figure:
    """Differences of accuracy with their intervals: a panel for each method that the others are compared with."""
    names = [*dict.fromkeys(name for found in against.values() for name in found)]
    figure, axes = axes_grid(0.24 * len(names) + 0.95, 1, len(against), sharey=True)
    for ax, (base, found) in zip(axes, against.items(), strict=True):
        ax.axvline(0, color=MUTED, linewidth=1)
        for row, name in enumerate(names):
            if name in found:
                _interval(ax, row, found[name])
        ax.set_title(f"against {base}")
        ax.set_xlabel("points of accuracy")
        ax.grid(True, axis="x")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def reliability_figure(curves: Mapping[str, Reliability]) -> Figure:
    """Share of correct answers against the probability of the answer: a panel for the baseline, one for the headline.

    Dots grow with the prompts.
    """
    figure, axes = axes_grid(2.9, 1, len(curves), sharey=True)
    for ax, (name, curve), colour in zip(axes, curves.items(), (VANILLA, CORRECTED), strict=False):
        ax.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle="--")
        ax.plot(100 * curve.confidence, 100 * curve.accuracy, color=colour, linewidth=1.5)
        ax.scatter(
            100 * curve.confidence, 100 * curve.accuracy, 12 + 260 * curve.share, color=colour, zorder=3, clip_on=False
        )
        ax.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="probability of the answer, %")
        ax.set_title(f"{name}: error {100 * curve.error:.1f} %")
        ax.grid(True, axis="both")
    axes[0].set_ylabel("correct answers, %")
    return figure


def heat_map(ax: Axes, values: Tensor, colour: str, square: bool = True, numbers: bool = True) -> None:
    """Shares as cells from nothing to full colour, with their percentages; position 1 is at the top left."""
    rows, columns = values.shape
    ax.pcolormesh(values.double().numpy(), cmap=shades(colour), vmin=0, vmax=1)
    size = 9 if columns <= 5 else 7.5 if columns <= _CROWDED else 6
    for row, column in torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).tolist() if numbers else ():
        value = float(values[row, column])
        text = "-" if value != value else f"{100 * value:.0f}"
        ink = "white" if value >= _DARK else INK
        ax.text(column + 0.5, row + 0.5, text, color=ink, ha="center", va="center", fontsize=size)
    ax.set_xticks([position - 0.5 for position in _labelled(columns)], [*map(str, _labelled(columns))])
    ax.set_yticks([position - 0.5 for position in _labelled(rows)], [*map(str, _labelled(rows))])
    ax.set_ylim(rows, 0)
    ax.set_aspect("equal" if square else "auto")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _labelled(size: int) -> range:
    """Positions that have a number on the axis: all, or every second where they are many."""
    return range(1, size + 1, 1 if size <= _CROWDED else 2)


def _layers(ax: Axes, layers: Sequence[int], by_layer: Mapping[str, Tensor], accuracy: float, chance: float) -> None:
    styles = ({"linestyle": "-"}, {"linestyle": ":"})
    for (name, values), line in zip(by_layer.items(), styles, strict=False):
        ax.plot(layers, 100 * values, color=ATTENTION, marker="o", markersize=3, label=name, **line)  # type: ignore[arg-type]
    ax.axhline(100 * accuracy, color=VANILLA, linewidth=1.5, label="answers of the model")
    ax.axhline(100 * chance, color=MUTED, linewidth=1, linestyle="--", label="chance")
    ax.set(ylim=(0, 103), xlabel="layer")
    ax.set_title("correct, %")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(True)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, fontsize=7.5, handlelength=1.4)


def _interval(ax: Axes, row: int, found: Difference) -> None:
    colour = (CORRECTED if found.mean > 0 else VANILLA) if found.significant else MUTED
    if found.low == found.low:
        ax.plot([100 * found.low, 100 * found.high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
    ax.plot([100 * found.mean], [row], marker="o", markersize=6, color=colour, linestyle="")


def _legend_above(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
