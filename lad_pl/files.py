"""Atomic file writes and what dead processes left of them, full disks, text and JSON, and packaged files."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import reprlib
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError

_PACKAGE = Path(__file__).parent
_BRIEF = reprlib.Repr()
_LONGEST = 80
_BRIEF.maxlevel, _BRIEF.maxstring = 2, _LONGEST
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))
_WRITER = re.compile(r"[.-](?:(?P<machine>[0-9a-f]{8})-)?(?P<pid>\d+)\.(?:part|arrows)$")
_DAY = 24 * 3600.0


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` at the end, removed after an exception.

    Raises:
        UserError: the disk is full.
    """
    path = Path(path)
    with full_disk_named(path, "What was there before is unchanged."):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{writer()}.part")
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # before the name says that it is there
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path, kept: str) -> Iterator[None]:
    """Turn the exceptions of a full disk into a line that names the folder.

    Args:
        path: that is written.
        kept: what is not lost; a sentence.

    Raises:
        UserError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow and torch have exceptions of their own for it
        full = next((reason for reason in _FULL if reason in str(error)), None)
        if full is None:
            raise
        raise UserError(
            f"{full}: {path.name} cannot be written into {path.parent}. {kept} Free some space there and run the same "
            "command again."
        ) from error


# ------------------------------------------------------------------------------------------- which process wrote what


@cache
def machine() -> str:
    """Eight digits for where process numbers mean the same as here: this machine, since it started, this container."""
    here = (socket.gethostname(), _read("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid"))
    return hashlib.sha256(repr(here).encode()).hexdigest()[:8]


def writer() -> str:
    """This process, as part of a file's name."""
    return f"{machine()}-{os.getpid()}"


def is_running(pid: int, started: str | None = None) -> bool:
    """Whether a process of this machine runs.

    Args:
        pid: its number.
        started: when it started, as :func:`start_of` says; another process may have got its number since.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # somebody else's
    except (ProcessLookupError, OverflowError):
        return False
    state, begun = _state(pid)
    return state not in ("Z", "X") and (not started or not begun or begun == started)


def start_of(pid: int) -> str:
    """When a process of this machine started, in the system's own ticks; empty where it does not say."""
    return _state(pid)[1]


def abandoned(path: Path) -> bool:
    """Whether the process that wrote a file named after its :func:`writer` has gone.

    Processes of other machines cannot be asked: they are taken for gone when the file is a day old.
    """
    match = _WRITER.search(path.name)
    if not match:
        return False
    pid = int(match["pid"])
    if match["machine"] in (None, machine()):  # names of earlier versions have no machine
        return pid == os.getpid() or not is_running(pid)
    try:
        return time.time() - path.stat().st_mtime > _DAY
    except OSError:
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left of :func:`atomic_write`, in a folder and its subfolders."""
    for pattern in (".*.part", "*/.*.part"):
        for path in folder.glob(pattern):
            if abandoned(path):
                path.unlink(missing_ok=True)


def _state(pid: int) -> tuple[str, str]:
    """State letter and start of a process; empty where the system does not say."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


# ------------------------------------------------------------------------------------------------------------ reading


def read_text(path: str | Path, remedy: str = "", what: str = "") -> str:
    """The content of a text file in UTF-8, without its byte-order mark if it has one; lines end in a line feed.

    Args:
        path: of the file.
        remedy: what the user can do about a file that cannot be read; a sentence for the error message.
        what: what the file holds, in the error message: ``the captions in``.

    Raises:
        UserError: the file is missing, unreadable, or not in UTF-8.
    """
    remedy = f" {remedy}" if remedy else ""
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"Cannot read {what}{' ' * bool(what)}{path}: {error.strerror}.{remedy}") from error
    except UnicodeDecodeError as error:
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise UserError(f"{path} is {'UTF-16' if utf16 else 'not UTF-8'} text; save it as UTF-8.") from error
    if "\0" in text:  # as in UTF-16 without its mark
        raise UserError(f"{path} has NUL characters, which no text in UTF-8 has; save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_lines(text: str) -> list[str]:
    """The lines of a text by its line feeds alone: captions may have other characters that Python takes for ends."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def read_json(path: str | Path, remedy: str = "") -> Any:
    """The content of a JSON file; see :func:`read_text` and :func:`parse_json`.

    Raises:
        UserError: the file is missing, unreadable or not valid JSON.
    """
    text = read_text(path, remedy)
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.{f' {remedy}' if remedy else ''}") from error


def parse_json(text: str) -> Any:
    """Parse JSON. A key that an object has twice is an error: which of the values is meant cannot be known.

    Raises:
        ValueError: the text is not valid JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the key {brief(repeated)} twice")
    return content


def brief(value: Any) -> str:
    """A value as Python writes it, cut short; takes no time, however deep it is and whatever its parts share."""
    try:
        return _BRIEF.repr(value)[:_LONGEST]
    except ValueError:  # an integer of thousands of digits
        return f"a value of type {type(value).__name__}"


def is_writable(text: str) -> bool:
    """Whether UTF-8 can encode a text: whether it is free of lone surrogates, halves of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def asset(relative: str) -> Path:
    """Path of a packaged file or folder, such as ``configs/demo.yaml``: in an installed wheel, or in a checkout.

    Raises:
        UserError: this installation does not carry it.
    """
    for root in (_PACKAGE / "assets", _PACKAGE.parent):
        if (root / relative).exists():
            return root / relative
    raise UserError(f"This installation lacks {relative}; install lad_pl anew, from a wheel or a full checkout.")


_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def expanded(path: str) -> str:
    """A path with a leading ``~`` and environment variables (``$NAME``, ``${NAME}``) replaced.

    What exists under the very name, a folder called ``$x`` for instance, is meant as it is written.

    Raises:
        UserError: a variable is not set.
    """
    special = next((place for place in _prefixes(path) if place.name.startswith("~") or "$" in place.name), None)
    if special is None or os.path.lexists(special):
        return path
    if special.parent == Path():  # only a path's beginning can be somebody's home
        path = os.path.expanduser(path)
    for variable in _VARIABLE.findall(path):
        if variable.strip("{}") not in os.environ:
            raise UserError(f"{path} names the environment variable {variable.strip('{}')}, which is not set.")
    return os.path.expandvars(path)


def _prefixes(path: str) -> Iterator[Path]:
    """The path's beginnings, the shortest first."""
    whole = Path(path)
    yield from (*reversed(whole.parents), whole)
