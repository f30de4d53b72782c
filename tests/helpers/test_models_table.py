"""The table of docs/models.md is the list of tested families."""

from __future__ import annotations

import models_table
from families import FAMILIES, UNSUPPORTED


def test_the_page_lists_the_tested_families() -> None:
    """`make models` writes the table; a family that is added or removed has to show there."""
    supported, refused = models_table.listed()
    assert supported == [family.name for family in FAMILIES]
    assert refused == list(UNSUPPORTED)
    assert not set(supported) & set(refused)


def test_the_table_has_what_was_measured() -> None:
    checks = {check: 3.2e-7 for checks in models_table.COLUMNS.values() for check in checks}
    measured = {family.name: checks for family in FAMILIES}
    measured["gemma3"] = {**checks, "batch, mass": 2e-5, "features": 0.0}
    row = next(line for line in models_table.table(measured).splitlines() if line.startswith("| `gemma3` "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "`Gemma3ForConditionalGeneration`"
    assert cells[3:-1] == ["1e-6", "1e-6", "0", "1e-4", "1e-6", "1e-6", "1e-6"]
