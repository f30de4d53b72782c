"""A sweep as tables, in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lad_pl.analysis.sweep.results import Summary, best, components, series
from lad_pl.analysis.sweep.settings_grid import Plan
from lad_pl.analysis.sweep.words import LABELS, About, chosen, held, percent, value_name

_WIDTH, _GAP = 80, 2
_CHOICES = "choices"
"""Header of a last column of words, which may be broken into lines."""
_CHOSEN_HERE = (
    "Chosen on the samples that they are measured on: report such a choice on other samples (sweep --stage validate, "
    "then test)."
)


@dataclass(frozen=True)
class TextTable:
    """Cells, with what stands above and below them."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        cells = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{cells}\n\n{self.note}\n"

    def terminal(self) -> Group:
        """For a terminal: as many columns beside each other as fit."""
        parts = [self._part(columns) for columns in self._columns()]
        return Group(Text(f"\n{self.title}", "bold"), *parts, Text(self.note, "dim"))

    def _columns(self) -> Iterator[list[int]]:
        """Numbers of the columns beside the first, by part."""
        lines = [self.header, *self.rows]
        widths = [_GAP + max(len(line[column]) for line in lines) for column in range(len(self.header))]
        if self.header[-1] == _CHOICES:
            widths[-1] = _GAP + len(_CHOICES)
        part: list[int] = []
        for column in range(1, len(widths)):
            if part and widths[0] + sum(widths[other] for other in [*part, column]) > _WIDTH + 1:
                yield part
                part = []
            part.append(column)
        yield part

    def _part(self, columns: Sequence[int]) -> Table:
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column(self.header[0], no_wrap=True)
        for column in columns:
            words = self.header[column] == _CHOICES
            table.add_column(self.header[column], justify="left" if words else "right", no_wrap=not words)
        for row in self.rows:
            table.add_row(row[0], *(row[column] for column in columns))
        return table


def tables(plan: Plan, summaries: Sequence[Summary], about: About) -> list[TextTable]:
    """What a sweep has to say: the readouts side by side, every varied factor, and the best few settings."""
    found = [
        _components(plan, summaries, about),
        *(_of_factor(plan, summaries, about, factor) for factor in plan.varied if factor != "recipe"),
        _best(summaries),
    ]
    return [table for table in found if len(table.rows) > (1 if table is found[0] else 0)]


def markdown(made: Sequence[TextTable], about: About, plots: Sequence[str]) -> str:
    """The content of sweep.md."""
    pictures = "\n".join(f"![{name}]({name}.png)\n" for name in plots)
    parts = [f"# Sweep of {about}\n", *(table.markdown() for table in made), pictures]
    return "\n".join(part for part in parts if part)


def _components(plan: Plan, summaries: Sequence[Summary], about: About) -> TextTable:
    found = components(plan, summaries)
    rows = [
        [
            summary.setting.readout,
            summary.setting.recipe or "",
            f"{percent(summary.mean['accuracy'])} ± {percent(summary.mean['accuracy_std'])}",
            *(percent(summary.mean[name]) for name in ("rstd", "consistency", "circular_accuracy")),
        ]
        for summary in found
    ]
    note = f"In %. accuracy: mean ± std over permutations. {held(plan, about, 'recipe', found)}."
    header = ["readout", "recipe", "accuracy", "RStd", "consistency", "circular"]
    return TextTable("Readouts", note, header, rows)


def _of_factor(plan: Plan, summaries: Sequence[Summary], about: About, factor: str) -> TextTable:
    found = series(plan, summaries, factor)
    values = plan.varied[factor]
    rows = [[name, *(_cell(by_value.get(value)) for value in values)] for name, by_value in found.items()]
    shown = [summary for by_value in found.values() for summary in by_value.values()]
    over = ": mean ± std over draws of calibration samples" if any(each.num_draws > 1 for each in shown) else ""
    note = f"Accuracy in %{over}. {held(plan, about, factor, shown)}."
    title = LABELS[factor][0].upper() + LABELS[factor][1:]
    return TextTable(title, note, ["readout", *map(value_name, values)], rows)


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    spread = summary.std["accuracy"]
    return percent(summary.mean["accuracy"]) + ("" if spread is None else f" ± {percent(spread)}")


def _best(summaries: Sequence[Summary]) -> TextTable:
    rows = [
        [
            summary.setting.readout,
            _cell(summary),
            *(percent(summary.mean[name]) for name in ("rstd", "consistency")),
            chosen(summary.setting),
        ]
        for summary in best(summaries)
    ]
    return TextTable("Highest accuracy", _CHOSEN_HERE, ["readout", "accuracy", "RStd", "consistency", _CHOICES], rows)
