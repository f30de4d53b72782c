"""Atomic file writes, JSON reading, and the files that are packaged with the toolkit."""

from __future__ import annotations

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


def read_text(path: str | Path) -> str:
    """The content of a text file, UTF-8 with or without a byte-order mark; line ends become newlines.

    Raises:
        UserError: it is no UTF-8 text.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or b"\0" in content[:4096]:
        raise UserError(f"{path} is not UTF-8 text but UTF-16, or no text at all; save it as UTF-8.")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error


def asset(relative: str) -> Path:
    """Path of a packaged file or folder, such as ``configs/demo.yaml``: in an installed wheel, or in a checkout.

    Raises:
        UserError: this installation does not carry it.
    """
    for root in (_PACKAGE / "assets", _PACKAGE.parent):
        if (root / relative).exists():
            return root / relative
    raise UserError(f"This installation lacks {relative}; install lad_pl anew, from a wheel or a full checkout.")
