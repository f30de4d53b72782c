"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lad_pl.errors import UserError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
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


_PACKAGE = Path(__file__).parent


def asset(relative: str) -> Path:
    """Path of an embedded file or folder, such as ``configs/demo.yaml``.

    Raises:
        UserError: this installation does not carry it.
    """
    for root in (_PACKAGE / "assets", _PACKAGE.parent):
        if (root / relative).exists():
            return root / relative
    raise UserError(f"This installation lacks {relative}; install lad_pl anew, from a wheel or a full checkout.")
