"""One table of results, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lad_pl.files import atomic_write

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "\N{MINUS SIGN}": "$-$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **dict.fromkeys("\r\n\t", " "),
    }
)
_MARKDOWN = str.maketrans(
    {**{character: f"\\{character}" for character in "\\|*_`[]<>"}, **dict.fromkeys("\r\n\t", " ")}
)


@dataclass(frozen=True)
class WrittenTable:
    """A table in words for people, and the same in plain numbers for programs."""

    name: str
    """Of its files."""
    caption: str
    columns: Sequence[str]
    """Headings; the first column names the row."""
    rows: Sequence[Sequence[str]]
    records: Sequence[Mapping[str, Any]]
    """The rows in full precision, shares instead of percent: the CSV file."""
    best: frozenset[tuple[int, int]] = field(default=frozenset())
    """Cells (row, column) that are set in bold."""

    def markdown(self) -> str:
        """A GitHub table."""
        cells = [[_in_bold(cell.translate(_MARKDOWN), where in self.best, "**", "**") for where, cell in row]
                 for row in self._cells()]  # fmt: skip
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [[column.translate(_MARKDOWN) for column in self.columns], rule, *cells]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{self.caption.translate(_MARKDOWN)}\n"

    def latex(self) -> str:
        r"""A ``table`` environment for the booktabs package."""
        heading, *rows = (
            " & ".join(cells) + r" \\"
            for cells in (
                [escape_latex(column) for column in self.columns],
                *(
                    [_in_bold(escape_latex(cell), where in self.best, r"\textbf{", "}") for where, cell in row]
                    for row in self._cells()
                ),
            )
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
        writer = csv.DictWriter(text, list(self.records[0]) if self.records else list(self.columns))
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()

    def write(self, folder: Path) -> None:
        """Write all three into a folder."""
        for suffix, text in (("md", self.markdown()), ("tex", self.latex()), ("csv", self.csv())):
            with atomic_write(folder / f"{self.name}.{suffix}") as partial:
                partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")

    def _cells(self) -> list[list[tuple[tuple[int, int], str]]]:
        return [[((y, x), cell) for x, cell in enumerate(row)] for y, row in enumerate(self.rows)]


def escape_latex(text: str) -> str:
    r"""Text as LaTeX shows it.

    >>> print(escape_latex("50 % of a_b & {c}"))
    50 \% of a\_b \& \{c\}
    """
    return text.translate(_LATEX)


def _in_bold(text: str, bold: bool, before: str, after: str) -> str:
    return f"{before}{text}{after}" if bold else text
