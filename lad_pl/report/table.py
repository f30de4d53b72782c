"""The metrics as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

_POSITIONS_PER_TABLE = 8  # fits 80 columns beside the longest name
_NOTE = (
    "All in %. accuracy: mean ± std over permutations. RStd: std of recall over\n"
    "positions. consistency: the same image under every permutation. circular: right\n"
    "under every permutation."
)


def metrics_table(report: Mapping[str, Any]) -> Group:
    """One row per readout, in percent.

    Args:
        report: the content of ``metrics.json``.
    """
    title = (
        f"{report['num_samples']} samples x {report['num_permutations']} permutations of "
        f"{report['num_candidates']} images, calibrated on {report['num_calibration_samples']} samples"
    )
    table = _table()
    for name in ("accuracy", "RStd", "consistency", "circular"):
        table.add_column(name, justify="right")
    for name, values in report["readouts"].items():
        table.add_row(
            name,
            f"{_percent(values['accuracy'])} ± {_percent(values['accuracy_std'])}",
            *(_percent(values[key]) for key in ("rstd", "consistency", "circular_accuracy")),
        )
    return Group(Text(title, "bold"), table, Text(_NOTE, "dim"))


def recall_table(report: Mapping[str, Any]) -> Group:
    """Recall by the right image's position, one row per readout, in percent; a few positions a table.

    Args:
        report: the content of ``metrics.json``.
    """
    positions = range(report["num_candidates"])
    parts = [
        _recall_part(report, positions[first : first + _POSITIONS_PER_TABLE])
        for first in positions[::_POSITIONS_PER_TABLE]
    ]
    return Group(Text("\nRecall by position of the right image, in %", "bold"), *parts)


def _recall_part(report: Mapping[str, Any], positions: Sequence[int]) -> Table:
    table = _table()
    for position in positions:
        table.add_column(str(position + 1), justify="right", min_width=3)
    for name, values in report["readouts"].items():
        table.add_row(name, *(_percent(values["recall_by_position"][position], 0) for position in positions))
    return table


def _table() -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("readout", no_wrap=True)
    return table


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"
