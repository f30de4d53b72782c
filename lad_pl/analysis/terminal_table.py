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
    "In %: accuracy, mean ± std over permutations; RStd, std of recall over\n"
    "positions; same, the same image under every permutation (consistency); all,\n"
    "right under every permutation (circular accuracy){success}.\n"
    "Cost per prompt: passes of the language model, and seconds. Readouts share one\n"
    "pass."
)
_SUCCESS = "; read, readable answers"


def metrics_table(report: Mapping[str, Any], costs: Mapping[str, Any]) -> Group:
    """One row per readout and method, in the paper's layout.

    Args:
        report: the content of ``metrics.json``.
        costs: the content of ``costs.json``.
    """
    title = (
        f"{report['num_samples']} samples x {report['num_permutations']} permutations of "
        f"{report['num_candidates']} images, calibrated on {report['num_calibration_samples']} samples"
    )
    in_words = any(values["success_rate"] < 1 for values in report["readouts"].values())
    kinds = {"RStd": "rstd", "same": "consistency", "all": "circular_accuracy"}
    kinds |= {"read": "success_rate"} if in_words else {}
    table = _table()
    for name in ("accuracy", *kinds, "passes", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, values in report["readouts"].items():
        cost = costs["methods"][name]
        table.add_row(
            name,
            f"{_percent(values['accuracy'])} ± {_percent(values['accuracy_std'])}",
            *(_percent(values[key]) for key in kinds.values()),
            f"{cost['forwards']:.4g}",
            f"{cost['seconds']:.2g}",
        )
    return Group(Text(title, "bold"), table, Text(_NOTE.format(success=_SUCCESS if in_words else ""), "dim"))


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
