"""A part of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lad_pl.analysis.plot_style import Plot
from lad_pl.analysis.table import WrittenTable


@dataclass(frozen=True)
class Picture:
    """A drawing that another command made."""

    name: str
    uri: str
    """The drawing itself, as a data URI."""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    plots: Sequence[Plot] = ()
    tables: Sequence[WrittenTable] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
