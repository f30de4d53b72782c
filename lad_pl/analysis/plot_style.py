"""The look of every figure, the colours of the methods, and figures as files and as inline SVG in the page's theme."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from lad_pl.files import atomic_write

INK, MUTED, LINE = "#1c2330", "#5d6675", "#c8ced8"
VANILLA, CORRECTED, ATTENTION = "#d0561c", "#2773bd", "#15936b"
OTHERS = ("#8a5fc7", "#b8860b", "#c2558f", "#3c9fb0", "#7a8a2b", "#95624a", "#6f7b8a")
"""Middle tones that colour-blind people can distinguish, legible on white and on near black."""

WIDTH = 6.6
"""Inches; with 9-point letters the page shows them a little smaller than its text."""

_THEMED = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: Any = {  # the names of rcParams are literals to matplotlib's types
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names of methods and folders are no formulas
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2,
    "svg.hashsalt": "lad_pl",
}


@dataclass(frozen=True)
class MethodStyle:
    """How the line and the points of a method are drawn."""

    colour: str
    dash: str = "-"
    marker: str = "o"


# Related readouts share a colour, and differ in dash and marker.
_METHODS = {
    "vanilla": MethodStyle(VANILLA, "--", ""),
    "pride": MethodStyle(OTHERS[1], "-", "v"),
    "pride_reference": MethodStyle(OTHERS[1], ":", "v"),
    "batch_calibration": MethodStyle(OTHERS[6], "-", "P"),
    "raw_attention": MethodStyle(OTHERS[3], "-", "s"),
    "purified_attention": MethodStyle(ATTENTION, "-", "D"),
    "agd": MethodStyle(CORRECTED, "-", "o"),
    "head_information": MethodStyle(OTHERS[0], "-", "^"),
    "head_information_label_free": MethodStyle(OTHERS[0], ":", "<"),
    "agd_head": MethodStyle(OTHERS[2], "-", "X"),
    "agd_head_label_free": MethodStyle(OTHERS[2], ":", "X"),
}
_FURTHER = (OTHERS[4], OTHERS[5], *OTHERS[:4], OTHERS[6])


def method_styles(names: Iterable[str]) -> dict[str, MethodStyle]:
    """A style for every method; those without one of their own get colours in their order."""
    further = itertools.cycle(_FURTHER)
    return {name: _METHODS.get(name) or MethodStyle(next(further), "-.", "*") for name in dict.fromkeys(names)}


@dataclass(frozen=True)
class Plot:
    """A figure with its texts on the page."""

    name: str
    """Of its files."""
    figure: Figure
    title: str = ""
    """What it shows, as a finding."""
    reading: str = ""
    """One or two sentences on how to read it."""

    def __post_init__(self) -> None:
        """Lay the figure out once, not once for each file."""
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")


@contextmanager
def style() -> Iterator[None]:
    """The look of what is drawn and saved inside."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of run folders' names, in the PNG alone
        yield


def axes_grid(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of full width and its rows x columns axes."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, [*figure.subplots(rows, columns, squeeze=False, **options).flat]


def shades(colour: str) -> LinearSegmentedColormap:
    """From nothing to a colour, so that empty cells have the page's own background."""
    return LinearSegmentedColormap.from_list(colour, [to_rgba(colour, 0.03), to_rgba(colour, 1)])


def save(plot: Plot, folder: Path) -> None:
    """Write a figure as PNG and SVG, for papers and slides."""
    for suffix, options in (("png", {"dpi": 200, "facecolor": "white"}), ("svg", {"metadata": {"Date": None}})):
        with atomic_write(folder / f"{plot.name}.{suffix}") as partial:
            plot.figure.savefig(partial, format=suffix, **options)


def inline_svg(plot: Plot) -> str:
    """A figure as an ``svg`` element for the page.

    Letters, lines and the background are the page's, in both themes. The page's content security policy allows no
    style but its own sheet, so that every property becomes an attribute; ids are made unique among the figures.
    """
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        plot.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue().encode())
    for parent in list(root.iter()):
        for child in [*parent]:
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _restyle(element)
        _rename(element, plot.name)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": plot.title, "class": "chart"}
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _restyle(element: ElementTree.Element) -> None:
    declared = element.attrib.pop("style", "")
    for name, value in re.findall(r"([\w-]+):\s*([^;]+)", declared):
        if name != "font-family":  # the page's
            element.set(name, _THEMED.get(value.strip(), value.strip()))


def _rename(element: ElementTree.Element, prefix: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{prefix}-{element.attrib['id']}")
    for name, value in element.attrib.items():
        if name == f"{{{_XLINK}}}href" or value.startswith("url(#"):
            element.set(name, value.replace("#", f"#{prefix}-", 1))
