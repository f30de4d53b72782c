"""Atomic file writes, JSON reading, and the files that are packaged with the toolkit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError

_PACKAGE = Path(__file__).parent


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` at the end, removed after an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # before the name says that it is there
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: str | Path, remedy: str = "") -> Any:
    """The content of a JSON file, UTF-8 with or without a byte-order mark.

    Args:
        path: of the file.
        remedy: what the user can do about a file that cannot be read; a sentence for the error message.

    Raises:
        UserError: the file is missing, unreadable or not valid JSON.
    """
    remedy = f" {remedy}" if remedy else ""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.{remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.{remedy}") from error


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
