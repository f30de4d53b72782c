"""Writes a stage's results into the run folder."""

from __future__ import annotations

import sys
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lad_pl.run.folder import RunFolder


class WriteRun(Callback):
    """Writes a stage's results into the run folder. The module adds it by itself; nobody has to name it."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put predictions, costs and metrics in place."""
        module, stage = cast(Any, pl_module), _stage(trainer)
        if trainer.is_global_zero:
            folder: RunFolder = module.run_folder
            if stage != "fit":
                folder.write_lines(folder.predictions(stage), module.records())
            if stage in ("test", "validate"):
                folder.write_json(folder.costs(stage), module.costs)
                folder.write_json(folder.metrics(stage), module.report)
            elif stage == "predict" and module.overwrite:
                for path in (folder.metrics(stage), folder.costs(stage)):
                    path.unlink(missing_ok=True)  # of the predictions just replaced
            folder.record(stage, module.settings())
        trainer.strategy.barrier()

    on_train_end = on_validation_end = on_predict_end = on_test_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Print where the results of an interrupted run are."""
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


def _stage(trainer: pl.Trainer) -> str:
    assert trainer.state.fn is not None
    return trainer.state.fn.value
