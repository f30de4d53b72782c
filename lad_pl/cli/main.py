"""The command line's entry: finds the command, imports only what it needs, and reports a mistake in one line."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from lad_pl.cli.commands import LIGHTNING_COMMANDS, OTHER_COMMANDS, run_command
from lad_pl.errors import UserError
from lad_pl.provenance import library_versions

COMMANDS = {**LIGHTNING_COMMANDS, **OTHER_COMMANDS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; those of the process if unset.

    Returns:
        The exit code: 0, 2 after a mistake in what was typed or supplied, or 1 if another process of the run has ended.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    command = typed[0] if typed else ""
    # Options may come first, as in `--config FILE test`.
    lightning = command in LIGHTNING_COMMANDS or (command.startswith("-") and bool({*LIGHTNING_COMMANDS} & {*typed}))
    try:
        if command in ("-h", "--help"):
            print(_overview())
        elif command == "--version":
            print(f"lad_pl {library_versions()['lad_pl']}")
        elif command in OTHER_COMMANDS:
            run_command(command, typed[1:])
        elif lightning:
            from lad_pl.cli.configuration import check_files, with_configs

            check_files(with_configs(typed))  # before anything slow is imported
            from lad_pl.cli.lightning_cli import run_lightning

            return run_lightning(typed)
        else:
            raise UserError(_no_command(command))
    except UserError as error:
        message = _one_line(error)
    except UnicodeEncodeError as error:
        message = f"A name or text has characters that cannot be written: {error.object[:80]!r}"
    except (ArgumentError, UnicodeDecodeError) as error:
        named = command if command in COMMANDS else "fit"
        message = f"{_innermost(str(error))}. `python -m lad_pl {named} --help` lists the options."
    except OSError as error:
        message = f"{error.filename or 'A file'}: {error.strerror or error}"
    else:
        return 0
    if lightning:
        from lad_pl.run.processes import is_first, reported_by_another

        if not is_first() and reported_by_another():
            return 2
    print(f"lad_pl: {message}", file=sys.stderr)
    return 2


def _overview() -> str:
    return f"""usage: lad_pl COMMAND [options]

Measure and remove position bias of multi-image vision-language models.

With a model (without --config or --model.vlm.path, the embedded demo):
{_listed(LIGHTNING_COMMANDS)}

Without a model:
{_listed(OTHER_COMMANDS)}

Options:
{_listed({"--help": "Show this overview or, after a command, its options.", "--version": "Show the version."})}"""


def _listed(descriptions: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:9}  {text}" for name, text in descriptions.items())


def _no_command(typed: str) -> str:
    close = get_close_matches(typed, COMMANDS, n=1)
    start = f"'{typed}' is no command{f'; did you mean {close[0]}?' if close else '.'}" if typed else "Name a command."
    return f"{start} Commands: {', '.join(COMMANDS)}."


def _innermost(message: str) -> str:
    """The informative lines of a parser's nested message, as one."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    if "DemoData" in text and "not accepted" in text:
        text += ". Without a configuration the demo runs: name a model with --config or --model.vlm.path"
    return text.rstrip(".")


def _one_line(error: BaseException) -> str:
    """The message without the traceback that a data worker puts before it."""
    return " ".join(str(error).rsplit("UserError: ", 1)[-1].split())
