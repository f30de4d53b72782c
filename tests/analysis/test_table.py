"""Tables in the terminal and in files."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from typing import Any

import pytest
from PIL import ImageFont
from rich.console import Console

from lad_pl.analysis.bootstrap import Difference
from lad_pl.analysis.photo_ranking import _cut
from lad_pl.analysis.table import MINUS, Table, interval, metrics_table, p_value, percent, points, recall_table


def printed(table: Table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return out.getvalue().splitlines()


def test_tables_escape_what_their_languages_take_for_commands():
    nasty = r"50% of a_b & {c} #1 \x ~ ^ $y$ | *z*"
    table = Table("t", ("method", "value"), [(nasty, "1 ± 2")], nasty, records=[{"method": nasty, "value": 1.5}],
                  best=frozenset({(0, 1)}))  # fmt: skip
    latex = table.latex()
    row = next(line for line in latex.splitlines() if line.startswith("50"))
    escaped = (
        r"50\% of a\_b \& \{c\} \#1 \textbackslash{}x \textasciitilde{} \textasciicircum{} \$y\$ | *z*"
        r" & \textbf{1 $\pm$ 2} \\"
    )
    assert row == escaped and r"\caption{" + escaped.split(" & ")[0] + "}" in latex
    assert r"\| \*z\*" in table.markdown() and "**1 ± 2**" in table.markdown()
    assert list(csv.DictReader(table.csv().splitlines())) == [{"method": nasty, "value": "1.5"}]


LINK = "\x1b]8;;http://x\x07cat\x1b]8;;\x07"
HOSTILE = f"\x1b[2J{LINK} \u202egnp.exe\u2066 \x9b31m\x7f \udce9 [red]dog[/] [/b] :smile:\nend"
SHOWN = (
    r"\x1b[2J\x1b]8;;http://x\x07cat\x1b]8;;\x07 \u202egnp.exe\u2066 \x9b31m\x7f \udce9 [red]dog[/] [/b] :smile: end"
)
FRIENDLY = "e\u0301t\u00e9 \u05d7\u05ea \u0642\u0637 \u0645\u06cc\u200c\u062e \u732b \U0001f469\u200d\U0001f680"
"""A combining accent, Hebrew, Arabic, Persian with a non-joiner, Chinese, an emoji with a joiner."""


def test_a_terminal_shows_names_and_captions_and_does_not_obey_them() -> None:
    table = Table("t", ("", HOSTILE), [("1", HOSTILE), ("2", FRIENDLY)], caption=HOSTILE, title=HOSTILE)
    out = io.StringIO()
    Console(file=out, width=300, force_terminal=True, color_system=None).print(table)
    text = out.getvalue()
    assert text.count(SHOWN) == 4
    assert FRIENDLY in text
    assert not [
        character for character in text if character != "\n" and unicodedata.category(character) in ("Cc", "Cs")
    ]
    assert not set(text) & set("\u202e\u2066")
    text_column = Table("t", ("", "photo"), [("1", HOSTILE)], text_column=1)
    assert "".join("".join(printed(text_column)).split()).endswith("".join(SHOWN.split()))


def test_a_contact_sheet_shows_them_too() -> None:
    font = ImageFont.load_default(size=14)
    assert _cut(HOSTILE, font, 10_000) == SHOWN
    assert _cut(FRIENDLY, font, 10_000) == FRIENDLY


def test_numbers_have_one_format_and_a_dash_where_there_is_none() -> None:
    assert (percent(0.9786), percent(1, 0), percent(None), percent(math.nan)) == ("97.9", "100", "-", "-")
    assert (points(0.03), points(-0.03), points(math.nan)) == ("+3.0", f"{MINUS}3.0", "-")
    assert (p_value(0.04), p_value(0.0009), p_value(math.nan)) == ("0.040", "<0.001", "-")
    assert interval(Difference(0.0, -0.01, 0.02, 0.5)) == f"[{MINUS}1.0, +2.0]"
    assert interval(Difference(0.5, math.nan, math.nan, math.nan)) == "-"


def test_columns_that_do_not_fit_the_terminal_follow_below() -> None:
    columns = ["readout", *(f"column {number}" for number in range(12))]
    lines = printed(Table("t", columns, [["a_long_name_of_a_readout", *map(str, range(100, 112))]], title="Title"))
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith("a_long_name")]
    assert len(rows) > 1
    assert [cell for row in rows for cell in row[1:]] == [*map(str, range(100, 112))]


def test_names_are_no_markup_in_the_terminal() -> None:
    table = Table("t", ["", "photo [b]"], [["1", "[red]x[/red].jpg " * 9]], title="a [i]cat[/i]", text_column=1)
    shown = " ".join(" ".join(printed(table)).split())
    assert shown.count("[red]x[/red].jpg") == 9 and "a [i]cat[/i]" in shown and "photo [b]" in shown


REPORT: dict[str, Any] = {
    "num_samples": 3,
    "num_permutations": 5,
    "num_candidates": 12,
    "num_calibration_samples": 2,
    "readouts": {
        "vanilla": {
            "accuracy": 0.5,
            "accuracy_std": None,
            "rstd": 0.25,
            "consistency": 0.1,
            "circular_accuracy": 0.05,
            "success_rate": 1.0,
            "recall_by_position": [None, *(place / 12 for place in range(1, 12))],
        }
    },
}
COSTS = {"methods": {"vanilla": {"forwards": 1.0, "seconds": 0.0123}}}


def test_the_metrics_in_the_terminal() -> None:
    lines = printed(metrics_table(REPORT, COSTS))
    assert "3 samples x 5 permutations of 12 images, calibrated on 2 samples" in lines
    assert ["readout", "accuracy", "RStd", "same", "all", "passes", "s"] in [line.split() for line in lines]
    assert ["vanilla", "50.0", "±", "-", "25.0", "10.0", "5.0", "1", "0.012"] in [line.split() for line in lines]
    assert "readable answers" not in " ".join(lines)


def test_the_share_of_readable_answers_is_shown_where_some_were_not() -> None:
    values = REPORT["readouts"]["vanilla"] | {"success_rate": 0.9}
    lines = printed(metrics_table(REPORT | {"readouts": {"vanilla": values}}, COSTS))
    assert any(line.split()[4:6] == ["all", "read"] for line in lines)
    assert any(line.split()[6:8] == ["5.0", "90.0"] for line in lines)
    assert "readable answers" in " ".join(lines)


def test_recall_by_position() -> None:
    table = recall_table(REPORT)
    assert table.columns == ["readout", *map(str, range(1, 13))]
    assert table.rows == [["vanilla", "-", *(f"{100 * place / 12:.0f}" for place in range(1, 12))]]
    (row,) = csv.DictReader(table.csv().splitlines())
    assert (row["method"], row["position 1"], float(row["position 2"])) == ("vanilla", "", pytest.approx(1 / 12))
