"""Atomic writes: leftovers of dead processes, and full disks."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from lad_pl import UserError
from lad_pl.files import atomic_write, machine, remove_leftovers

GONE = 2**22 + 1
"""A process number larger than any that Linux gives."""


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "photos-1").mkdir()
    with atomic_write(tmp_path / "metrics.json") as partial:
        partial.write_text("{}")
        living = partial.name.replace(str(os.getpid()), str(os.getppid()))
    dead = [f".a.json.{GONE}.part", f".b.json.{machine()}-{GONE}.part", f"photos-1/.c.{machine()}-{GONE}.part"]
    elsewhere, old = ".d.json.0123abcd-1.part", ".e.json.0123abcd-1.part"
    kept = [living, f".f.{os.getppid()}.part", elsewhere, "file.bin.part", ".hidden", ".g.part"]
    for name in (*dead, old, *kept):
        (tmp_path / name).write_text("half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / old, (two_days_ago, two_days_ago))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "photos-1", *kept}
    assert not list((tmp_path / "photos-1").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        pa.ArrowException(f"IOError: Error writing bytes to file: {os.strerror(errno.ENOSPC)}"),
        RuntimeError(f"PytorchStreamWriter failed: {os.strerror(errno.ENOSPC)}"),
    ],
)
def test_a_full_disk_is_named(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("before")
    with pytest.raises(UserError, match=f"metrics.json cannot be written into {tmp_path}. What was there before"):
        _fails(path, error)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == "before"
    with pytest.raises(RuntimeError, match="something else"):
        _fails(path, RuntimeError("something else"))


def _fails(path: Path, error: Exception) -> None:
    with atomic_write(path) as partial:
        partial.write_text("half")
        raise error
