"""``python -m lad_pl compare RUN [RUN]``: light to import, so that its ``--help`` comes at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError, check_at_least, say


def compare(
    runs: Sequence[str | Path],
    readouts: list[str] | None = None,
    shared: bool = False,
    stage: str = "test",
    out: str | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Any:
    """Test whether one run, or one readout, is better than another by more than chance.

    Two run folders are compared readout by readout, on the prompts that both have. Of one run folder, the first
    of ``readouts`` is compared with each of the others.

    Args:
        runs: one or two run folders.
        readouts: readouts, or methods with forward passes of their own; all of the run if unset.
        shared: compare on the samples that the two runs share, where they do not share all.
        stage: test, or validate.
        out: file for the comparison as well: .md, .csv, .tex or .json.
        draws: how many times the bootstrap resamples the samples.
        seed: of the bootstrap.

    Returns:
        The lad_pl.analysis.comparison.Comparison that is printed.

    Raises:
        UserError: the runs do not have the same prompts, or a readout is not in them.
    """
    if stage not in ("test", "validate"):
        raise UserError(f"stage is '{stage}'; choose test or validate.")
    check_at_least(1, draws=draws)

    from rich.console import Console

    from lad_pl.analysis.comparison import check_ending, compare_runs, write_comparison
    from lad_pl.analysis.stored_run import StoredRun
    from lad_pl.analysis.threads import one_thread

    if out is not None:
        check_ending(out)
    with one_thread():
        comparison = compare_runs([StoredRun(Path(run), stage) for run in runs], readouts, shared, draws, seed)
    Console().print(comparison)
    if out is not None:
        write_comparison(out, comparison)
        say(f"Comparison: {out}")
    return comparison
