"""``python -m lad_pl report RUN...``: light to import, so that its ``--help`` comes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lad_pl.errors import UserError, check_at_least, say


def report(
    runs: list[Path],
    out: Path | None = None,
    stage: Literal["test", "validate"] = "test",
    gallery: int = 60,
    images: Path | None = None,
) -> None:
    """Show what a run found: one HTML page, with its figures (PNG, SVG) and tables (Markdown, CSV, LaTeX) beside it.

    The page needs no network and can be sent as one file. Of several runs the first is shown in full, and compared
    with the others: accuracy by the number of images, and prompt by prompt where their prompts are the same.

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
    check_at_least(0, gallery=gallery)
    if images is not None and not images.is_dir():
        raise UserError(f"There is no image folder {images}.")
    if len({path.resolve() for path in runs}) < len(runs):
        raise UserError("A run folder is named twice; name every one once.")

    from lad_pl.analysis.report.build import write_report
    from lad_pl.analysis.report.reported_run import read_run

    first, *others = (read_run(path, stage) for path in runs)
    folder = first.run.path / "report" if out is None else out
    write_report(folder, first, others, gallery, images)
    say(f"Report: {folder / 'index.html'}")
