"""Holds the run folder while a stage runs, and writes the stage's results into it."""

from __future__ import annotations

import io
import sys
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lad_pl.files import atomic_write
from lad_pl.run.folder import RunFolder
from lad_pl.run.lock import release_all
from lad_pl.run.processes import ProcessWatcher, on_rank_zero


class WriteRun(Callback):
    """Holds the run folder while a stage runs, and writes the stage's results into it.

    The module adds it by itself; nobody has to name it.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before the model is loaded: watch the other processes, and let no other run of the stage into the folder.

        Raises:
            UserError: another run of the stage goes on there.
        """
        module = cast(Any, pl_module)
        if trainer.world_size > 1:
            module.processes = ProcessWatcher(trainer, module.run_folder.path)
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        on_rank_zero(trainer, partial(module.run_folder.claim, stage_of(trainer)))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let others into the folder."""
        release_all()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put predictions, costs and metrics in place."""
        module, stage = cast(Any, pl_module), stage_of(trainer)
        if trainer.is_global_zero:
            folder: RunFolder = module.run_folder
            if stage != "fit":
                folder.write_lines(folder.predictions(stage), module.records())
            if stage in ("test", "validate"):
                folder.write_json(folder.costs(stage), module.costs)
                folder.write_json(folder.metrics(stage), module.report)
            folder.record(stage, module.settings(), module.data.chosen())
        trainer.strategy.barrier()

    on_train_end = on_validation_end = on_predict_end = on_test_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let others into the folder, and print where the results of an interrupted run are."""
        release_all()
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.is_global_zero:
            module = cast(Any, pl_module)
            if module.processes is not None:
                module.processes.leaving = True  # the others' ends are no failures
            folder = module.run_folder.path
            print(
                f"lad_pl: Stopped; what was computed is kept in {folder}. Run the same command again to go on.",
                file=sys.stderr,
            )
            exception.add_note("It has been reported.")  # the command line has nothing to add


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place; Lightning writes it into the system's folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            UserError: the disk is full.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_write(path) as partial:
            partial.write_bytes(content.getvalue())


def stage_of(trainer: pl.Trainer) -> str:
    """The command in progress: fit, validate, test or predict."""
    assert trainer.state.fn is not None
    return trainer.state.fn.value
