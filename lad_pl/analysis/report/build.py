"""Builds the report: the page, and beside it its figures and tables as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lad_pl.analysis.plot_style import save, style
from lad_pl.analysis.report.ablations import ablation_section
from lad_pl.analysis.report.gallery import make_gallery
from lad_pl.analysis.report.other_runs import other_runs_section
from lad_pl.analysis.report.page import render_page
from lad_pl.analysis.report.reported_run import ReportedRun
from lad_pl.analysis.report.results import results_table
from lad_pl.analysis.report.sections import run_sections
from lad_pl.files import atomic_write


def write_report(
    folder: Path, first: ReportedRun, others: Sequence[ReportedRun], gallery: int, images: Path | None
) -> None:
    """Write index.html, figures/ and tables/ into a folder.

    Args:
        folder: made if it does not exist.
        first: the run that is shown in full.
        others: the runs that it is compared with.
        gallery: how many samples are shown with their images; 0 for none.
        images: folder of the images; the one recorded in the run if None.
    """
    with style():
        results = results_table(first)
        sections = [*run_sections(first), other_runs_section([first, *others]), ablation_section(first)]
        shown = make_gallery(first, gallery, images) if gallery else None
        for plot in (plot for section in sections for plot in section.plots):
            save(plot, folder / "figures")
        for table in (results, *(table for section in sections for table in section.tables)):
            table.write(folder / "tables")
        page = render_page(first, results, sections, shown)
    with atomic_write(folder / "index.html") as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
