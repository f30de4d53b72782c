"""Atomic file writes, reading of text and JSON, and the files that are packaged with the toolkit."""

from __future__ import annotations

import codecs
import json
import os
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
