"""The names of all commands, and the commands that need no Lightning: functions whose signatures become options.

Each function's docstring is its help. Everything is imported when it is called, so that each command starts fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError

LIGHTNING_COMMANDS = {
    "fit": "Calibrate on a few samples.",
    "validate": "Evaluate on the validation samples, to choose settings.",
    "test": "Evaluate every readout on the test samples.",
    "predict": "Rank the images of samples whose answers are unknown.",
}
"""What each command of the Trainer does."""
OTHER_COMMANDS = {
    "prepare": "Build annotation files from captioned images and benchmarks.",
    "download": "Download public sets of captioned images.",
    "sweep": "Evaluate other settings on a run's stored evidence.",
    "report": "Write an HTML page, figures and tables of what runs found.",
    "compare": "Test whether one run, or one readout, is better than another.",
}
"""What each of the other commands does."""


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Run one of :data:`OTHER_COMMANDS`.

    Raises:
        UserError: something typed or supplied is wrong.
        argparse.ArgumentError: an option cannot be parsed.
    """
    from jsonargparse import auto_cli

    from lad_pl.cli.configuration import check_files, with_configs
    from lad_pl.cli.parser import Parser

    arguments = with_configs(arguments)
    check_files(arguments)
    settings: dict[str, Any] = {"args": list(arguments), "parser_class": Parser, "prog": f"lad_pl {command}"}
    if command == "prepare":
        from lad_pl.data.prepare.commands import COMMANDS

        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise UserError(f"'{arguments[0]}' is nothing that prepare reads; choose from {', '.join(COMMANDS)}.")
        builders: Any = COMMANDS  # auto_cli's type knows no plain dict
        auto_cli(builders, as_positional=False, **settings)
    elif command == "download":
        from lad_pl.data.prepare.download import download

        auto_cli(download, as_positional=True, **settings)
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
    """Run a function whose first parameter is one run folder or several, given without an option's name."""
    from lad_pl.cli.parser import Parser

    description = " ".join((function.__doc__ or "").partition("Args:")[0].split())
    parser = Parser(prog=f"lad_pl {command}", description=description)
    several: dict[str, Any] = {} if count is None else {"nargs": count}
    about = "run folders of finished tests" if several else "the run folder, after fit and test"
    parser.add_argument(folders, type=Path, help=about, **several)
    parser.add_function_arguments(function, skip={folders}, as_group=False)
    function(**parser.parse_args(list(arguments)).as_dict())
