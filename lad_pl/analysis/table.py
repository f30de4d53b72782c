"""Tables of results: one number format, in the terminal, as Markdown, CSV and LaTeX, and on the HTML page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box, table
from rich.console import Group
from rich.text import Text

from lad_pl.analysis.bootstrap import Difference
from lad_pl.errors import printable
from lad_pl.files import atomic_write

MINUS = "\N{MINUS SIGN}"
_WIDTH = 80  # of a terminal
_GAP = 2  # between columns
_FORMULA = tuple("=+-@\t\r\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH COMMERCIAL AT}")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "<": "$<$",
        ">": "$>$",
        MINUS: "$-$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **dict.fromkeys("\r\n\t", " "),
    }
)
_MARKDOWN = str.maketrans(
    {**{character: f"\\{character}" for character in "\\|*_`[]<>"}, **dict.fromkeys("\r\n\t", " ")}
)
_ABOUT_METRICS = (
    "In %: accuracy, mean ± std over permutations; RStd, std of recall over positions; same, the same image under "
    "every permutation (consistency); all, correct under every permutation (circular accuracy){success}. Cost per "
    "prompt: passes of the language model, and seconds. Readouts share one pass."
)
_ABOUT_SUCCESS = "; read, readable answers"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign; "-" where it is undefined.

    >>> percent(0.9786), percent(None)
    ('97.9', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def mean_and_std(mean: float | None, std: float | None) -> str:
    """Two shares in percent.

    >>> mean_and_std(0.9786, 0.01)
    '97.9 ± 1.0'
    """
    return f"{percent(mean)} ± {percent(std)}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign; "-" where it is undefined.

    >>> points(0.031), points(-0.031)
    ('+3.1', '−3.1')
    """
    if math.isnan(difference):
        return "-"
    return (MINUS if difference < 0 else "+") + percent(abs(difference))


def p_value(p: float) -> str:
    """A probability to three digits; "-" where it is undefined.

    >>> p_value(0.0002), p_value(0.04)
    ('<0.001', '0.040')
    """
    return "-" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def interval(found: Difference) -> str:
    """The confidence interval of a difference, in percentage points; "-" where it is undefined.

    >>> interval(Difference(0.02, -0.01, 0.05, 0.2))
    '[−1.0, +5.0]'
    """
    return "-" if math.isnan(found.low) else f"[{points(found.low)}, {points(found.high)}]"


def csv_cell(value: Any) -> Any:
    """A value for a cell of a CSV file: a text that a spreadsheet would take for a formula gets an apostrophe in front.

    >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell(-0.5), csv_cell("agd")
    ("'=1+1", '-0.5', -0.5, 'agd')
    """
    if not isinstance(value, str) or not value.lstrip(" \n").startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


@dataclass(frozen=True)
class Table:
    """Cells for people, and the same in full precision for programs. Rich prints it: ``Console().print(table)``."""

    name: str
    """Of its files."""
    columns: Sequence[str]
    """Headings; the first column names the row."""
    rows: Sequence[Sequence[str]]
    caption: str = ""
    """Below the table."""
    title: str = ""
    """Above the table in the terminal."""
    records: Sequence[Mapping[str, Any]] = ()
    """The rows in full precision, shares instead of percent: the CSV file."""
    best: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) that are set in bold in the written forms."""
    text_column: int | None = None
    """A column of running text, which the terminal breaks into lines."""

    def __rich__(self) -> Group:
        """For a terminal of 80 columns: in parts, where its columns do not fit side by side."""
        columns, *rows = ([*map(printable, line)] for line in (self.columns, *self.rows))
        shown = replace(self, columns=columns, rows=rows)
        title = Text(f"\n{printable(self.title)}" if self.title else "", "bold")
        caption = [Text(printable(self.caption), "dim")] if self.caption else []
        return Group(title, *map(shown._part, shown._parts()), *caption)

    def markdown(self) -> str:
        """A GitHub table."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [[column.translate(_MARKDOWN) for column in self.columns], rule, *self._escaped(_MARKDOWN, "**", "**")]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{self.caption.translate(_MARKDOWN)}\n"

    def latex(self) -> str:
        r"""A ``table`` environment for the booktabs package."""
        heading, *rows = (
            " & ".join(cells) + r" \\"
            for cells in (map(escape_latex, self.columns), *self._escaped(_LATEX, r"\textbf{", "}"))
        )
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(self.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            *(r"\toprule", heading, r"\midrule", *rows, r"\bottomrule"),
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Comma-separated values, with a heading line."""
        text = io.StringIO()
        columns = list(self.records[0]) if self.records else list(self.columns)
        writer = csv.DictWriter(text, columns)
        writer.writerow({column: csv_cell(column) for column in columns})
        writer.writerows({key: csv_cell(value) for key, value in record.items()} for record in self.records)
        return text.getvalue()

    def write(self, folder: Path) -> None:
        """Write all three into a folder."""
        for suffix, text in (("md", self.markdown()), ("tex", self.latex()), ("csv", self.csv())):
            with atomic_write(folder / f"{self.name}.{suffix}") as partial:
                partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")

    def _parts(self) -> Iterator[list[int]]:
        """Numbers of the columns beside the first, as many at a time as fit the width."""
        lines = [self.columns, *self.rows]
        widths = [_GAP + max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        if self.text_column is not None:
            widths[self.text_column] = _GAP + len(self.columns[self.text_column])
        part: list[int] = []
        for column in range(1, len(widths)):
            if part and widths[0] + sum(widths[other] for other in [*part, column]) > _WIDTH + 1:
                yield part
                part = []
            part.append(column)
        yield part

    def _part(self, columns: Sequence[int]) -> table.Table:
        part = table.Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        part.add_column(Text(self.columns[0]), no_wrap=True)
        for column in columns:
            text = column == self.text_column
            style: Any = {"overflow": "fold"} if text else {"justify": "right", "no_wrap": True}
            part.add_column(Text(self.columns[column]), **style)
        for row in self.rows:
            cells = (row[column].replace(MINUS, "-") for column in (0, *columns))  # not every terminal has the sign
            part.add_row(*map(Text, cells))  # Text: names are no markup
        return part

    def _escaped(self, escapes: dict[int, str], before: str, after: str) -> list[list[str]]:
        """The rows in another language, the best cells between ``before`` and ``after``."""
        rows = [[cell.translate(escapes) for cell in row] for row in self.rows]
        for y, x in self.best:
            rows[y][x] = f"{before}{rows[y][x]}{after}"
        return rows


def escape_latex(text: str) -> str:
    r"""Text as LaTeX shows it.

    >>> print(escape_latex("50 % of a_b & {c}"))
    50 \% of a\_b \& \{c\}
    """
    return text.translate(_LATEX)


def metrics_table(report: Mapping[str, Any], costs: Mapping[str, Any]) -> Table:
    """One row per readout and method, in the paper's layout, for the terminal.

    Args:
        report: the content of ``metrics.json``.
        costs: the content of ``costs.json``.
    """
    keys = {"RStd": "rstd", "same": "consistency", "all": "circular_accuracy"}
    in_words = any(values["success_rate"] < 1 for values in report["readouts"].values())
    keys |= {"read": "success_rate"} if in_words else {}
    rows = []
    for name, values in report["readouts"].items():
        cost = costs["methods"][name]
        rows.append(
            [
                name,
                mean_and_std(values["accuracy"], values["accuracy_std"]),
                *(percent(values[key]) for key in keys.values()),
                f"{cost['forwards']:.4g}",
                f"{cost['seconds']:.2g}",
            ]
        )
    return Table(
        name="metrics",
        title=f"{report['num_samples']} samples x {report['num_permutations']} permutations of "
        f"{report['num_candidates']} images, calibrated on {report['num_calibration_samples']} samples",
        columns=["readout", "accuracy", *keys, "passes", "s"],
        rows=rows,
        caption=_ABOUT_METRICS.format(success=_ABOUT_SUCCESS if in_words else ""),
    )


def recall_table(report: Mapping[str, Any], heading: str = "readout", digits: int = 0) -> Table:
    """Recall by position of the correct image in percent: one row per readout or method, one column per position.

    Args:
        report: the content of ``metrics.json``.
        heading: of the first column.
        digits: after the decimal point.
    """
    positions = range(1, report["num_candidates"] + 1)
    recall = {name: values["recall_by_position"] for name, values in report["readouts"].items()}
    return Table(
        name="recall",
        title="Recall by position of the correct image, in %",
        columns=[heading, *map(str, positions)],
        rows=[[name, *(percent(value, digits) for value in values)] for name, values in recall.items()],
        records=[
            {
                "method": name,
                **{f"position {position}": value for position, value in zip(positions, values, strict=True)},
            }
            for name, values in recall.items()
        ],
    )
