"""The run folder (the Trainer's ``default_root_dir``): paths, reading and writing of its files.

============================ ======================================================================
config.yaml                  the configuration of the latest command
calibration.ckpt             the calibration and its provenance (fit)
calibration_evidence.parquet the calibration passes that it was made of (fit)
evidence.parquet             the evidence of every prompt (test, predict; validate: its own)
evidence-....parquet         the same of each method with forward passes of its own
predictions.jsonl            one line per prompt: scores and choices (test, predict; validate: its own)
metrics.json                 the metrics of every readout and method (test; validate: its own)
costs.json                   forward passes and seconds per prompt (test; validate: its own)
run.json                     the settings of each stage's results, so that no other configuration replaces them
photos-.../                  evidence, predictions and rankings of a person's photos, one folder per question
============================ ======================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError
from lad_pl.files import atomic_write, read_json
from lad_pl.provenance import first_difference, library_versions

CALIBRATION = "calibration.ckpt"
_PREFIX = {"test": "", "predict": "", "validate": "validation_", "fit": "calibration_"}
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

    def costs(self, stage: str) -> Path:
        """Forward passes and seconds of a stage."""
        return self.path / f"{_PREFIX[stage]}costs.json"

    def evidence(self, stage: str, method: str = "") -> Path:
        """The evidence of a stage: that of the readouts, or of a method by its name."""
        folder = self.calibration.parent if stage == "fit" else self.path
        return folder / f"{_PREFIX[stage]}evidence{'-' if method else ''}{method}.parquet"

    @property
    def rankings(self) -> Path:
        """The rankings of a person's photos."""
        return self.path / "rankings.jsonl"

    def read_predictions(self, stage: str) -> list[Record]:
        """The finished predictions of a stage, one record per prompt."""
        with self.predictions(stage).open(encoding="utf-8") as file:
            return list(map(json.loads, file))

    def write_lines(self, path: Path, records: Iterable[Record]) -> None:
        """Write a JSONL file atomically."""
        with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, records))

    def relative(self, path: Path) -> str:
        """A path as it is recorded: by its name alone if it is in this folder, which may be moved."""
        path = path.resolve()
        return path.name if path.parent == self.path.resolve() else str(path)

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
        """Record the settings that the results of a stage depend on."""
        output = CALIBRATION if stage == "fit" else self.predictions(stage).name
        entry = {"stage": stage, "settings": settings, "versions": library_versions()}
        self.write_json(self.path / "run.json", {**self._recorded(), output: entry})

    def write_json(self, path: Path, content: Any) -> None:
        """Write a JSON file atomically."""
        _write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _recorded(self) -> dict[str, Any]:
        path = self.path / "run.json"
        recorded = read_json(path, "Choose another run folder.") if path.exists() else {}
        if not isinstance(recorded, dict) or not all("settings" in entry for entry in recorded.values()):
            raise UserError(f"{path} is damaged; choose another run folder.")
        return recorded


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).translate(_ESCAPED) + "\n"


_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""What many readers take for the end of a line, such as ``str.splitlines``."""


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
