"""``python -m lad_pl report``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lad_pl.analysis.plot_style import save, style
from lad_pl.analysis.report.ablations import ablation_section
from lad_pl.analysis.report.gallery import make_gallery
from lad_pl.analysis.report.other_runs import other_runs_section
from lad_pl.analysis.report.page import render_page
from lad_pl.analysis.report.reported_run import read_run
from lad_pl.analysis.report.results import results_table
from lad_pl.analysis.report.sections import run_sections
from lad_pl.errors import UserError
from lad_pl.files import atomic_write


def report(
    runs: list[Path],
    out: Path | None = None,
    stage: Literal["test", "validate"] = "test",
    gallery: int = 60,
    images: Path | None = None,
) -> None:
    """Show what a run found: one HTML page, with its figures (PNG, SVG) and tables (Markdown, CSV, LaTeX) beside it.

    The page needs no network and can be sent as one file. Of several runs the first is shown in full, and compared
    with the others: accuracy by the number of images, and where they were asked the same, prompt by prompt.

    Args:
        runs: run folders of finished tests.
        out: folder to write to; report in the first run folder if unset.
        stage: whose results: test, or validate.
        gallery: how many samples are shown with their images; 0 for none.
        images: folder of the images, where it is not the one that the run was made with.

    Raises:
        UserError: a run folder or one of its files is missing or damaged.
    """
    if not runs:
        raise UserError("Name a run folder: python -m lad_pl report checkpoints/run.")
    if gallery < 0:
        raise UserError(f"gallery is {gallery}; it must be at least 0.")
    if images is not None and not images.is_dir():
        raise UserError(f"There is no image folder {images}.")
    if len({path.resolve() for path in runs}) < len(runs):
        raise UserError("A run folder is named twice; name every one once.")
    first, *others = (read_run(path, stage) for path in runs)
    folder = first.run.path / "report" if out is None else out
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
    print(f"Report: {folder / 'index.html'}")
