"""Stages of one loaded module, without the command line: a few tenths of a second each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from lad_pl import AttentionGuidedDebiasing, MultiImageData, UserError


@dataclass
class Run:
    """Stages of one module in a run folder, and the batches that they compute."""

    module: AttentionGuidedDebiasing
    folder: Path
    sizes: list[int]

    def __call__(self, stage: str, data: MultiImageData | None = None, overwrite: bool = False, **options: Any) -> int:
        """Run a stage; the number of batches that it computed."""
        if data is None:
            annotations = str(self.folder.parent / "data" / "annotations.json")
            if stage == "validate":
                options = {"validation_annotations": annotations, "allow_calibration_in_test": True, **options}
            data = MultiImageData(annotations, **{"num_calibration": 2, "num_permutations": 2, **options})
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=self.folder, **quiet)
        self.module.overwrite = overwrite
        before = len(self.sizes)
        getattr(trainer, stage)(self.module, datamodule=data)
        return len(self.sizes) - before

    def refused(self, *arguments: Any, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            self(*arguments, **options)
        return str(error.value)
