"""Runs of several processes: if one ends, the others end too, with one line on why.

Lightning's processes wait for each other at many points. If one has been stopped or has died, the others would wait for
the network library's time limit, half an hour.
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
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import pyarrow as pa
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from lad_pl.errors import UserError
from lad_pl.run.lock import release_all

T = TypeVar("T")
USER_ERROR = 2
"""Exit code after a mistake in what was typed or supplied; the process with this code has printed it in one line."""
SIGTERM_EXIT = 128 + 15
"""Exit code of a process that ended on SIGTERM, as in shells."""
FAILED = 1
"""Exit code of a run that ended because another process did."""
_GO_ON = "Run the same command again to go on."
LOST = f"Another process of this run has ended; what was computed is kept. {_GO_ON}"
_PATIENCE = 5.0
_PARENT = os.getppid()


class ProcessWatcher:
    """Watches the other processes of a run, from one of them.

    Args:
        trainer: after its processes have been launched.
        folder: of the run.
    """

    def __init__(self, trainer: pl.Trainer, folder: Path) -> None:
        self.leaving = False
        """Whether this process has been asked to end, which it does after the current batch."""
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
        """Install the SIGTERM handler, after Lightning's: end after the current batch, whether or not the others do.

        Lightning's own handler broadcasts to the others, which hangs if they have not received the signal themselves.
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
        release_all()
        os._exit(USER_ERROR if code == USER_ERROR else FAILED)


def check_trainer(trainer: pl.Trainer, tensor_parallel: int) -> None:
    """Refuse a precision, and a strategy that would hold the model more often, or in other parts, than intended.

    Args:
        trainer: the Trainer.
        tensor_parallel: how many processes are to hold the weights of one model together.

    Raises:
        UserError: the Trainer has a precision of its own, the strategy splits weights for training, or
            ``tensor_parallel`` is not the number of processes.
    """
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise UserError(
            "This trainer.strategy splits weights that it trains, and would leave a whole model on every device; "
            "use ddp, and model.vlm.tensor_parallel or model.vlm.device_map for a model larger than a device."
        )
    if trainer.precision != "32-true":
        raise UserError(f"trainer.precision is {trainer.precision}; set model.vlm.dtype instead.")
    if tensor_parallel == 1:
        return
    if tensor_parallel != trainer.world_size:
        raise UserError(
            f"model.vlm.tensor_parallel is {tensor_parallel}, but the run has {trainer.world_size} processes; set "
            f"trainer.devices times trainer.num_nodes to {tensor_parallel}, with trainer.strategy ddp."
        )
    os.environ.setdefault("LOCAL_RANK", str(trainer.local_rank))  # where transformers looks for its device


def on_rank_zero(trainer: pl.Trainer, work: Callable[[], T]) -> T:
    """The result of ``work``, computed on the first process and broadcast to all.

    Raises:
        UserError: ``work`` raised one, or could not read or write a file; on every process, because they wait for it.
    """
    trainer.strategy.barrier()
    outcome: tuple[T | None, str] = (None, "")
    if trainer.is_global_zero:
        try:
            outcome = (work(), "")
        except (UserError, OSError, pa.ArrowException) as error:
            outcome = (None, str(error))
    result, message = trainer.strategy.broadcast(outcome)
    if message:
        raise UserError(message)
    return cast(T, result)


def reported_by_another() -> bool:
    """Wait a little while for the process that launched this one to end; whether it has.

    A mistake that all processes meet is printed once, by the first of them. Meanwhile a launcher may end this process.
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
    """Whether an exception means that another process has gone."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def _end_with_parent() -> None:
    while os.getppid() == _PARENT:
        time.sleep(0.2)
    os._exit(FAILED)


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name=work.__name__, daemon=True).start()
