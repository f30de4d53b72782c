"""One run at a time for each stage of a run folder: a lock file that names the process which holds it.

It is made by a hard link, or exclusively where the disk has no links: both are atomic, on NFS as well. A process that
was killed leaves its file behind. On the same machine the next run sees that the process is gone, and takes over. On
another machine it cannot see that; the file's date tells, which the holder renews while it lives.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError
from lad_pl.files import full_disk_named, is_running, machine, start_of, writer

_BEAT = 20.0
"""Seconds between two signs of life."""
_SILENCE = 300.0
"""After so many seconds without one, a process of another machine is taken for gone."""
_HELD: dict[Path, Lock] = {}


class Lock:
    """A lock file.

    Args:
        path: of the file.
        doing: what its holder does, as the start of a sentence.
    """

    def __init__(self, path: Path, doing: str) -> None:
        self.path = path
        self.doing = doing
        self._content = ""
        self._released = threading.Event()

    def acquire(self, patience: float = 0) -> None:
        """Take the lock; wait for ``patience`` seconds where another process holds it.

        Raises:
            UserError: another process holds it; or the disk is full.
        """
        end = time.monotonic() + patience
        me: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "machine": machine()}
        me |= {
            "started": start_of(os.getpid()),
            "since": datetime.now().astimezone().isoformat(timespec="microseconds"),
        }
        self._content = json.dumps(me)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._make():
            there = self._read()
            if there and self._is_stale(there):
                self._bury(there)
            elif there and time.monotonic() >= end:
                raise UserError(self._refusal(there))
            else:
                time.sleep(0.05)
        _HELD[self.path] = self
        self._released.clear()
        threading.Thread(target=self._show_life, name="lock", daemon=True).start()

    def release(self) -> None:
        """Remove the file, if it is still this lock's and was not inherited by a fork."""
        self._released.set()
        own = bool(_HELD.pop(self.path, None)) and json.loads(self._content)["pid"] == os.getpid()
        if own and self._read() == self._content:
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Make sure that nobody else has taken the lock since.

        Raises:
            UserError: somebody has.
        """
        there = self._read()
        if not there:  # somebody has removed it, and nobody has taken it
            self.acquire()
        elif there != self._content:
            raise UserError(self._refusal(there))

    def _make(self) -> bool:
        """Make the file; False if there is one."""
        partial = self.path.with_name(f".{self.path.name}.{writer()}.part")
        with full_disk_named(self.path, "Nothing was changed."):
            partial.write_text(self._content, encoding="utf-8")
            try:
                with suppress(FileExistsError):
                    os.link(partial, self.path)
                return partial.stat().st_nlink == 2  # what link says may be lost on the way from a server
            except OSError:
                return self._make_exclusively()
            finally:
                partial.unlink(missing_ok=True)

    def _make_exclusively(self) -> bool:
        """The same on a disk without hard links."""
        try:
            file = self.path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self._content)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _read(self) -> str:
        """The content of the file; empty if there is none, blank if it says nothing."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace") or " "
        except FileNotFoundError:
            return ""

    def _is_stale(self, there: str) -> bool:
        holder = _parsed(there)
        if holder.get("machine") != machine():
            return self._silence() > _SILENCE
        if holder["pid"] == os.getpid():
            return self.path not in _HELD
        return not is_running(holder["pid"], holder.get("started"))

    def _silence(self) -> float:
        """Seconds since the holder's last sign of life, by the clock of the disk's own machine."""
        probe = self.path.with_name(f".{self.path.name}.{writer()}.part")
        try:
            probe.touch()
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink(missing_ok=True)

    def _bury(self, there: str) -> None:
        """Put a stale file away; one process alone succeeds."""
        grave = self.path.with_name(f".{self.path.name}.stale.{writer()}.part")
        with suppress(FileNotFoundError):
            self.path.rename(grave)
            if grave.read_text(encoding="utf-8", errors="replace") != there.strip(" "):  # another was faster
                with suppress(OSError):
                    os.link(grave, self.path)
            grave.unlink()

    def _refusal(self, there: str) -> str:
        holder = _parsed(there)
        since = str(holder.get("since", "an unknown time")).partition(".")[0].replace("T", " ")
        who = f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown machine')}, since {since}"
        elsewhere = holder.get("machine") != machine()
        gone = f" If that process is gone, delete {self.path}." if elsewhere else ""
        return (
            f"{self.doing} in {self.path.parent} ({who}). Wait until it has ended, or choose another folder with "
            f"--trainer.default_root_dir.{gone}"
        )

    def _show_life(self) -> None:
        while not self._released.wait(_BEAT):
            with suppress(OSError):
                os.utime(self.path)


@contextmanager
def locked(path: Path, doing: str, patience: float) -> Iterator[None]:
    """Hold a lock for a moment; see :class:`Lock`."""
    lock = Lock(path, doing)
    lock.acquire(patience)
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path, stage: str) -> None:
    """Take the lock of a stage in a folder, until :func:`release_all`.

    Raises:
        UserError: another run of that stage goes on there.
    """
    Lock(folder.resolve() / f".{stage}.lock", f"{stage} is already running").acquire()


def check_claims() -> None:
    """Make sure that nobody else has taken a lock that this process holds.

    Raises:
        UserError: somebody has.
    """
    for lock in list(_HELD.values()):
        lock.check()


@atexit.register
def release_all() -> None:
    """Release every lock that this process holds."""
    for lock in list(_HELD.values()):
        lock.release()


def _parsed(there: str) -> dict[str, Any]:
    """What a lock file says; empty if it is no lock of this toolkit's."""
    try:
        holder = json.loads(there)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and isinstance(holder.get("pid"), int) else {}
