"""A run of several processes: when one of them ends, the others end too, and one line says why.

Lightning's processes wait for each other at many points. One that was stopped or has died does not come, and the others
would wait for as long as the network library has patience: half an hour.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

USER_ERROR = 2
"""Exit code after a mistake in what was typed or supplied; whoever has it has said in one line what it was."""
FAILED = 1
"""Exit code of a run that another process's end has ended."""
_GO_ON = "Run the same command again to go on."
LOST = f"Another process of this run has ended; what was computed is kept. {_GO_ON}"
_PATIENCE = 5.0
_PARENT = os.getppid()


class ProcessWatcher:
    """The processes of a run, seen from one of them.

    Args:
        trainer: with its processes launched.
        folder: of the run.
    """

    def __init__(self, trainer: pl.Trainer, folder: Path) -> None:
        self.leaving = False
        """Whether this process has been asked to end; it does so after the batch in hand."""
        self._folder = folder
        self._launched: list[subprocess.Popen[Any]] = []
        self._watched_by_lightning: list[subprocess.Popen[Any]] = []
        strategy = trainer.strategy
        if not isinstance(strategy.launcher, _SubprocessScriptLauncher):
            return  # processes that are forked or spawned watch each other
        self._watched_by_lightning = strategy.launcher.procs
        self._launched = list(self._watched_by_lightning)
        if self._launched:
            _in_background(self._end_with_launched)
        elif isinstance(getattr(strategy, "cluster_environment", None), LightningEnvironment) and trainer.local_rank:
            _in_background(_end_with_parent)

    def listen(self) -> None:
        """End after the batch in hand when asked to (SIGTERM), whether or not the others are.

        Lightning's own handler tells the others by a broadcast, which hangs where they have not been asked themselves.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._leave)

    def _leave(self, signum: int, frame: Any) -> None:
        self.leaving = True
        # Its observer would kill this process, in the midst of a batch, once one of the others has ended as it should.
        self._watched_by_lightning.clear()
        for process in self._launched:
            process.send_signal(signum)

    def _end_with_launched(self) -> None:
        """End with the first of the launched processes that fails, and end the others."""
        while not self.leaving:
            codes = [process.poll() for process in self._launched]
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            if failed is not None and not self.leaving:
                self._end_all(failed)
            if None not in codes:
                return
            time.sleep(0.2)

    def _end_all(self, failed: int) -> None:
        code = self._launched[failed].returncode
        if code != USER_ERROR:
            print(
                f"lad_pl: Process {failed + 1} of this run has ended (exit code {code}); what was computed is kept in "
                f"{self._folder}. {_GO_ON}",
                file=sys.stderr,
                flush=True,
            )
        for process in self._launched:
            process.kill()
        os._exit(USER_ERROR if code == USER_ERROR else FAILED)


def reported_by_another() -> bool:
    """Wait a little while for the process that launched this one to end; whether it has.

    A mistake that all processes meet is told once, by the first of them. Meanwhile a launcher may end this process.
    """
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if os.getppid() != _PARENT:
            return True
        time.sleep(0.1)
    return False


def is_first() -> bool:
    """Whether this is the first process of the run, or the only one."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def is_lost_contact(error: BaseException) -> bool:
    """Whether an exception tells that another process has gone."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def _end_with_parent() -> None:
    while os.getppid() == _PARENT:
        time.sleep(0.2)
    os._exit(FAILED)


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name=work.__name__, daemon=True).start()
