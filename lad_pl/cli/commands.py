"""The commands around LightningCLI's: plain functions, whose signatures and docstrings are the options and their help.

Each imports what it needs when it is called, because no other command needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, auto_cli

SUMMARIES = {
    "prepare": "Build annotation files from captioned images and benchmarks.",
    "download": "Fetch public sets of captioned images.",
    "sweep": "Try other settings on a run's stored evidence, without its model.",
    "report": "Show what runs found: one HTML page, figures and tables.",
    "compare": "Say whether one run, or one readout, is better than another by more than chance.",
}


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Run one of :data:`SUMMARIES`.

    Raises:
        UserError: something typed or supplied does not fit.
        jsonargparse.ArgumentError: an option cannot be read.
    """
    if command == "prepare":
        from lad_pl.data.prepare.commands import COMMANDS

        builders: Any = COMMANDS  # auto_cli's type knows no plain dict
        auto_cli(builders, args=list(arguments), as_positional=False, prog="lad_pl prepare", exit_on_error=False)
    elif command == "download":
        from lad_pl.data.prepare.download import download

        auto_cli(download, args=list(arguments), as_positional=True, prog="lad_pl download", exit_on_error=False)
    elif command == "sweep":
        from lad_pl.analysis.sweep.command import sweep

        _on_runs(sweep, "run", None, command, arguments)
    elif command == "report":
        from lad_pl.analysis.report.command import report

        _on_runs(report, "runs", "+", command, arguments)
    else:
        from lad_pl.analysis.compare import compare

        _on_runs(compare, "runs", "+", command, arguments)


def _on_runs(
    function: Callable[..., Any], folders: str, count: str | None, command: str, arguments: Sequence[str]
) -> None:
    """A function whose first parameter is one run folder, or several: named without an option."""
    description = " ".join((function.__doc__ or "").partition("Args:")[0].split())
    parser = ArgumentParser(prog=f"lad_pl {command}", exit_on_error=False, description=description)
    several: dict[str, Any] = {} if count is None else {"nargs": count}
    about = "run folders of finished tests" if several else "the run folder, after fit and test"
    parser.add_argument(folders, type=Path, help=about, **several)
    parser.add_function_arguments(function, skip={folders}, as_group=False)
    function(**parser.parse_args(list(arguments)).as_dict())
