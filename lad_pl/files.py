"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def write_annotations(path: str | Path, samples: Sequence[dict[str, Any]]) -> None:
    """Write an annotation file, as :func:`lad_pl.data.read_annotations` reads it."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(list(samples), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
