"""The command line's entry: finds the command, imports only what it needs, and reports a mistake in one line."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches

from lad_pl.cli.commands import LIGHTNING_COMMANDS, OTHER_COMMANDS, run_command
from lad_pl.errors import STOPPED, UserError, caused_by, printable
from lad_pl.provenance import library_versions

COMMANDS = {**LIGHTNING_COMMANDS, **OTHER_COMMANDS}
_BROKEN_PIPE = 128 + 13  # SIGPIPE, as in shells


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; those of the process if unset.

    Returns:
        The exit code: 0; 2 after a mistake in what was typed or supplied; 1 after Ctrl-C, or if another process of the
        run has ended; 141 if nobody reads the output any more.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    command = typed[0] if typed else ""
    # Options may come first, as in `--config FILE test`.
    lightning = command in LIGHTNING_COMMANDS or (command.startswith("-") and bool({*LIGHTNING_COMMANDS} & {*typed}))
    try:
        code = _run(command, typed, lightning)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BaseException as error:  # Ctrl-C, too
        if interrupt := caused_by(error, KeyboardInterrupt):
            if not getattr(interrupt, "__notes__", None):  # else the run has said more
                _complain(STOPPED)
            return 1
        if caused_by(error, BrokenPipeError) and (isinstance(error, SystemExit) or _nobody_reads()):  # SystemExit: rich
            return _BROKEN_PIPE
        message = _message(error, command)
        if message is None:
            raise
    if lightning:
        from lad_pl.run.processes import is_first, reported_by_another

        if not is_first() and reported_by_another():
            return 2
    _complain(message)
    return 2


def _run(command: str, typed: Sequence[str], lightning: bool) -> int:
    for argument in typed:
        argument.encode()  # parsers fail of undecodable bytes in ways of their own
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
    return 0


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
    if unread := re.search(r"Unable to load config ['\"](.*?)['\"]", text):
        text = f"'{unread[1]}' is neither options nor a configuration file that can be read"
        text += "; a model is named by model.vlm.path" if "model" in message else ""
    if "DemoData" in text and "not accepted" in text:
        text += ". Without a configuration the demo runs: name a model with --config or --model.vlm.path"
    return text.rstrip(".")


# ----------------------------------------------------------------------------------------------- how a command ends


def _nobody_reads() -> bool:
    """Whether an output is a pipe that is closed at its other end, as by ``| head``; it is dropped from then on.

    A pipe to another process of the run breaks in the same way, and is none of them.
    """
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(state & select.POLLERR for _, state in poll.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                closed = True
        except (AttributeError, OSError, ValueError):
            continue  # no file, or no such question on this system
    return closed


def _complain(message: str) -> None:
    with suppress(OSError):  # the exit code remains
        print(f"lad_pl: {message}", file=sys.stderr, flush=True)


def _message(error: BaseException, command: str) -> str | None:
    """What to print of an exception that the user can mend; None of every other."""
    if isinstance(error, UserError):
        return _one_line(error)
    if isinstance(error, UnicodeEncodeError):
        text = ascii(error.object[max(0, error.start - 40) : error.end + 20])
        return f"A name or text has characters that cannot be written: {text}; rename the file, or type it as UTF-8."
    if isinstance(error, ArgumentError | UnicodeDecodeError):
        named = command if command in COMMANDS else "fit"
        return printable(f"{_innermost(str(error))}. `python -m lad_pl {named} --help` lists the options.")
    if isinstance(error, OSError):
        return printable(_of_the_system(error))
    if isinstance(error, ValueError) and str(error).startswith("embedded null "):
        return "A path has a NUL character, which no file's name can have; correct it in the configuration or file."
    return None


_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "choose another place, or ask for the right to use this one"),
    errno.EROFS: "choose a place on a disk that can be written",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there, or choose a place on another disk"),
    errno.ENOENT: "check its name",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.EEXIST: "a file has this name; choose another place, or rename the file",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "shorten it",
    errno.ELOOP: "links lead in a circle; correct them",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit with ulimit -n, or use fewer data.num_workers"),
    errno.EIO: "the disk or the network fails; try another one",
    errno.ESTALE: "the network disk has gone; mount it again",
}


def _of_the_system(error: OSError) -> str:
    """What an operation on a file failed of, and what to do."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    remedy = _REMEDIES.get(error.errno or 0)
    where = " and ".join(names) or "The output, or a file"
    return f"{where}: {error.strerror or error}{f'; {remedy}' if remedy else ''}."


def _one_line(error: BaseException) -> str:
    """The message without the traceback that a data worker puts before it."""
    return printable(" ".join(str(error).rsplit("UserError: ", 1)[-1].split()))
