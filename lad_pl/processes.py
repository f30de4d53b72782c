"""A run of several processes: when one of them ends, the others end too, and one line says why.

Lightning has each process wait for the others at every meeting point. One that was stopped or has died does not come,
and the wait lasts as long as the network library's patience: half an hour.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only

FAILED = 1
"""Exit code of a process whose run ended with another process."""
LOST = "Another process of this run has ended. What was computed is kept; run the same command again to go on."
_PATIENCE = 5.0


class Company:
    """The other processes of this process's run, watched from a thread.

    Args:
        trainer: set up.
        folder: of the run.
    """

    def __init__(self, trainer: pl.Trainer, folder: Path) -> None:
        self.leaving = False
        """Whether this process has been asked to end (SIGTERM): it does after the batch in hand."""
        self._folder = folder
        self._launcher: Any = trainer.strategy.launcher
        self._launched = list(getattr(self._launcher, "procs", ()))
        environment = getattr(trainer.strategy, "cluster_environment", None)
        launched_by_other = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        if self._launched:
            _in_background(self._end_with_launched)
        elif launched_by_other:
            _in_background(_end_with_parent)
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            # Lightning's handler tells the others by a broadcast, which hangs where they are not asked to end as well.
            signal.signal(signal.SIGTERM, self._leave)

    def _leave(self, signum: int, frame: Any) -> None:
        if not self.leaving:
            self.leaving = True
            for process in self._launched:
                process.send_signal(signum)

    def _end_with_launched(self) -> None:
        """Wait for the processes that this one launched; end with the first that fails, and end the others."""
        while not self.leaving and any(process.poll() is None for process in self._launched):
            codes = [process.poll() for process in self._launched]
            failed = next((place for place, code in enumerate(codes) if code), None)
            if failed is not None and not self.leaving:
                self._end_all(failed + 1, codes[failed])
            time.sleep(0.2)
