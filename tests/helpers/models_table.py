"""The table of docs/models.md, from what the tests of the families measured."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from families import FAMILIES, UNSUPPORTED
from paths import ROOT

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- models: begin (written by `make models`) -->", "<!-- models: end -->"
COLUMNS = {
    "sdpa": ("mass, sdpa",),
    "eager": ("mass, eager",),
    "features": ("features",),
    "batch": ("batch, log-probability", "batch, mass"),
    "N = 4": ("candidates, digits, N = 4",),
    "N = 12": ("candidates, digits, N = 12",),
    "Roman": ("candidates, roman, N = 8",),
}

Measured = Mapping[str, Mapping[str, float]]


def table(measured: Measured) -> str:
    """Markdown: one row per family, with the largest error of every check as a power of ten above it."""
    lines = [
        " | ".join(["model_type", "class", "for example", *COLUMNS, "what is particular"]),
        "|".join(["---"] * (4 + len(COLUMNS))),
    ]
    for family in FAMILIES:
        errors = measured[family.name]
        worst = [_power_of_ten(max(errors[check] for check in checks)) for checks in COLUMNS.values()]
        example = family.checkpoints.split(", ")[0]
        lines.append(" | ".join([f"`{family.name}`", f"`{family.class_name}`", example, *worst, family.differs]))
    refused = [f"- `{name}`: {reason}" for name, reason in UNSUPPORTED.items()]
    return "\n".join([*(f"| {line} |" for line in lines), "", "Not supported, and why:", "", *refused])


def write(measured: Measured) -> None:
    """Put the table between its marks in the page, if every family has been measured."""
    missing = [family.name for family in FAMILIES if family.name not in measured]
    if missing:
        raise SystemExit(
            f"The table of docs/models.md is left as it is: {', '.join(missing)} not measured in this run."
        )
    text = PAGE.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:start]}\n{table(measured)}\n{text[end:]}")


def listed() -> tuple[list[str], list[str]]:
    """The model types that the page lists as supported and as not supported."""
    text = PAGE.read_text()
    between = text[text.index(BEGIN) : text.index(END)]
    return tuple(re.findall(pattern, between, re.MULTILINE) for pattern in (r"^\| `(\w+)` ", r"^- `(\w+)`: "))


def _power_of_ten(error: float) -> str:
    """3.2e-7 is below 1e-6."""
    return "0" if error == 0 else f"1e{math.floor(math.log10(error)) + 1}"
