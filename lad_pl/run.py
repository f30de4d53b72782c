"""The run folder (the Trainer's ``default_root_dir``): what a run leaves behind, written as it comes.

=================== =============================================================================
config.yaml         the configuration of the latest command
calibration.ckpt    the calibration and its provenance (fit)
predictions.jsonl   one line per prompt: evidence and choices (test, predict; validate: its own)
metrics.json        the metrics of every readout (test; validate: its own)
run.json            what each stage's results depend on, so that no other configuration replaces them
photos-.../         predictions and rankings of a person's photos, one folder per question
=================== =============================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lad_pl.errors import UserError
from lad_pl.files import whole_file
from lad_pl.provenance import first_difference, library_versions

CALIBRATION = "calibration.ckpt"
_PREFIX = {"test": "", "predict": "", "validate": "validation_"}
Record = dict[str, Any]


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; made on first writing.
        results: folder within it for everything but the calibration.
    """

    def __init__(self, path: str | Path, results: str = "") -> None:
        self.path = Path(path) / results
        self.calibration = Path(path) / CALIBRATION
        """Where ``fit`` writes its result."""

    def predictions(self, stage: str) -> Path:
        """The finished predictions of a stage."""
        return self.path / f"{_PREFIX[stage]}predictions.jsonl"

    def metrics(self, stage: str) -> Path:
        """The metrics of a stage."""
        return self.path / f"{_PREFIX[stage]}metrics.json"

    @property
    def rankings(self) -> Path:
        """The rankings of a person's photos."""
        return self.path / "rankings.jsonl"

    def read_predictions(self, stage: str) -> list[Record]:
        """The finished predictions of a stage, one record per prompt."""
        with self.predictions(stage).open(encoding="utf-8") as file:
            return list(map(json.loads, file))

    def write_lines(self, path: Path, records: Iterable[Record]) -> None:
        """Write a JSONL file whole or not at all."""
        _write(path, "".join(map(_line, records)))

    def part(self, stage: str, rank: int) -> Path:
        """What one process has predicted so far."""
        return self.predictions(stage).with_suffix(f".rank{rank}.part")

    def check(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Refuse a folder whose results come from other settings.

        Raises:
            UserError: it holds such results; they would be lost.
        """
        output = self.calibration if stage == "fit" else self.predictions(stage)
        recorded = self._recorded().get(output.name)
        if recorded is None or not output.exists():
            return
        difference = first_difference(recorded["settings"], dict(settings))
        if difference:
            raise UserError(
                f"{output} holds results of another configuration ({difference}). Choose another folder with "
                f"--trainer.default_root_dir (and --ckpt_path {self.calibration} for its calibration), or replace them "
                "with --model.overwrite true."
            )

    def record(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Note what the results of a stage depend on."""
        output = CALIBRATION if stage == "fit" else self.predictions(stage).name
        entry = {"stage": stage, "settings": settings, "versions": library_versions()}
        self.write_json(self.path / "run.json", {**self._recorded(), output: entry})

    def merge_parts(self, stage: str, world_size: int) -> None:
        """Put the processes' predictions into the samples' order, as one file, at once."""
        parts = [self.part(stage, rank) for rank in range(world_size)]
        records: list[Record] = []
        for part in parts:
            with part.open(encoding="utf-8") as file:  # not splitlines: captions may hold other line separators
                records.extend(map(json.loads, file))
        records.sort(key=lambda record: record.pop("order"))
        self.write_lines(self.predictions(stage), records)
        for part in parts:
            part.unlink()

    def write_json(self, path: Path, content: Any) -> None:
        """Write a JSON file whole or not at all."""
        _write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _recorded(self) -> dict[str, Any]:
        try:
            recorded = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            recorded = None
        if not isinstance(recorded, dict) or not all("settings" in entry for entry in recorded.values()):
            raise UserError(f"{self.path / 'run.json'} is damaged; choose another run folder.")
        return recorded


class WriteRun(Callback):
    """Writes the run folder. The module adds it by itself; nobody has to name it."""

    def _append(self, trainer: pl.Trainer, module: Any, records: Iterable[Record]) -> None:
        part = module.run_folder.part(_stage(trainer), trainer.global_rank)
        with part.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, records))

    def _finish(self, trainer: pl.Trainer, module: Any) -> None:
        stage = _stage(trainer)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            folder = module.run_folder
            if stage != "fit":
                folder.merge_parts(stage, trainer.world_size)
            if stage in ("test", "validate"):
                folder.write_json(folder.metrics(stage), module.report)
            elif stage == "predict" and module.overwrite:
                folder.metrics(stage).unlink(missing_ok=True)  # they were of the predictions just replaced
            folder.record(stage, module.settings())
        trainer.strategy.barrier()

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open this process's file of predictions."""
        folder = cast(Any, pl_module).run_folder
        folder.path.mkdir(parents=True, exist_ok=True)
        part = folder.part(_stage(trainer), trainer.global_rank)
        if part.exists() and part.stat().st_size:
            os.replace(part, part.with_name(part.name + ".interrupted"))  # of a run that broke off
        part.write_text("", encoding="utf-8")

    on_validation_epoch_start = on_predict_epoch_start = on_test_epoch_start

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Append the batch's predictions, so that an interruption loses none."""
        self._append(trainer, pl_module, outputs["records"])

    on_validation_batch_end = on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put predictions and metrics in place."""
        self._finish(trainer, pl_module)

    on_train_end = on_validation_end = on_predict_end = on_test_end


def _stage(trainer: pl.Trainer) -> str:
    assert trainer.state.fn is not None
    return trainer.state.fn.value


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
