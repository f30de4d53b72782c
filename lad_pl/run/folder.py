"""The run folder (the Trainer's ``default_root_dir``): paths, reading and writing of its files.

============================ ======================================================================
config.yaml                  the configuration of the latest command
calibration.ckpt             the calibration and its provenance (fit)
calibration_evidence.parquet the calibration passes that it was made of (fit)
evidence.parquet             the evidence of every prompt (test)
evidence-....parquet         the same of each method with forward passes of its own
predictions.jsonl            one line per prompt: scores and choices (test)
metrics.json                 the metrics of every readout and method (test)
costs.json                   forward passes and seconds per prompt (test)
validation_..., predict_...  the same files of validate and predict
run.json                     the settings of each stage's results, so that no other configuration replaces them
photos-.../                  evidence, predictions and rankings of a person's photos, one folder per question
.STAGE.lock                  the process that runs a stage here, while it does
============================ ======================================================================

Earlier versions wrote the files of ``predict`` under the names of ``test``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError
from lad_pl.files import atomic_write, read_json, remove_leftovers
from lad_pl.provenance import first_difference, library_versions
from lad_pl.readouts import ReadoutSettings
from lad_pl.run.lock import check_claims, claim, locked

CALIBRATION = "calibration.ckpt"
_PREFIX = {"test": "", "predict": "predict_", "validate": "validation_", "fit": "calibration_"}
_PATIENCE = 60.0
_NEW = "image_contents"
"""A setting that earlier versions did not record."""
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
        self._shared = not results
        """Whether stages share the folder; that of photos is predict's alone."""

    def predictions(self, stage: str) -> Path:
        """The finished predictions of a stage."""
        return self.path / f"{self._prefix(stage)}predictions.jsonl"

    def metrics(self, stage: str) -> Path:
        """The metrics of a stage."""
        return self.path / f"{self._prefix(stage)}metrics.json"

    def costs(self, stage: str) -> Path:
        """Forward passes and seconds of a stage."""
        return self.path / f"{self._prefix(stage)}costs.json"

    def evidence(self, stage: str, method: str = "") -> Path:
        """The evidence of a stage: that of the readouts, or of a method by its name."""
        folder = self.calibration.parent if stage == "fit" else self.path
        return folder / f"{self._prefix(stage)}evidence{'-' if method else ''}{method}.parquet"

    def related(self, evidence: Path) -> list[Path]:
        """Where else evidence of the same prompts may be: test's of predict's, and that of other sets of photos."""
        if not self._shared:
            return [
                folder / evidence.name for folder in sorted(self.path.parent.glob("photos-*")) if folder != self.path
            ]
        readouts = [self.evidence(stage) for stage in ("test", "predict")]  # predict has no other methods
        return [path for path in readouts if path != evidence] if evidence in readouts else []

    def _prefix(self, stage: str) -> str:
        return _PREFIX[stage] if self._shared or stage != "predict" else ""

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

    def claim(self, stage: str) -> None:
        """Let no other run of a stage work here until this one ends; remove what killed processes left.

        Raises:
            UserError: another run of that stage goes on here.
        """
        claim(self.path, stage)
        remove_leftovers(self.calibration.parent)

    def check(
        self, stage: str, settings: Mapping[str, Any], chosen: Mapping[str, Any], overwrite: bool = False
    ) -> None:
        """Refuse a folder that another run has taken, or whose results come from other settings.

        Args:
            stage: fit, validate, test or predict.
            settings: that its results depend on.
            chosen: the options that choose its samples and images.
            overwrite: let results of other settings be replaced.

        Raises:
            UserError: it holds such results, which would be lost; or another run of the stage has taken it.
        """
        check_claims()
        output = self.calibration if stage == "fit" else self.predictions(stage)
        recorded = self._recorded().get(output.name)
        if overwrite or recorded is None or not output.exists():
            return
        comparable = {name: value for name, value in settings.items() if name in recorded["settings"] or name != _NEW}
        difference = first_difference(_with_defaults(recorded["settings"]), comparable)
        if difference:
            difference = _in_words(difference, recorded.get("chosen", {}), chosen)
            raise UserError(
                f"{output} holds results of another configuration ({difference}). Choose another folder with "
                f"--trainer.default_root_dir (and --ckpt_path {self.calibration} for its calibration), or replace them "
                "with --model.overwrite true: the evidence of samples that stay the same is not computed anew."
            )

    def record(self, stage: str, settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
        """Record the settings that the results of a stage depend on, and the options that choose its samples."""
        output = CALIBRATION if stage == "fit" else self.predictions(stage).name
        entry = {"stage": stage, "settings": settings, "chosen": dict(chosen), "versions": library_versions()}
        path = self.path / "run.json"
        with locked(self.path.resolve() / ".run.json.lock", "run.json is being written", _PATIENCE):
            self.write_json(path, {**self._recorded(), output: entry})

    def write_json(self, path: Path, content: Any) -> None:
        """Write a JSON file atomically."""
        _write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _recorded(self) -> dict[str, Any]:
        path = self.path / "run.json"
        recorded = read_json(path, "Choose another run folder.") if path.exists() else {}
        if not isinstance(recorded, dict) or not all("settings" in entry for entry in recorded.values()):
            raise UserError(f"{path} is damaged; choose another run folder.")
        return recorded


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings, those of the readouts that earlier versions did not have at their defaults."""
    if "readout" not in settings:
        return dict(settings)
    return {**settings, "readout": {**asdict(ReadoutSettings()), **settings["readout"]}}


def _in_words(difference: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """A difference between digests of samples or images as one between the options that chose them."""
    what = difference.partition(":")[0]
    if what not in ("samples", "images", _NEW):
        return difference
    what = "images" if what == _NEW else what
    options = {name: value for name, value in here.items() if what == "images" or name != "images"}
    if not there:
        return f"other {what}, chosen by {', '.join(f'--data.{name}' for name in options)}"
    differing = [name for name, value in options.items() if there.get(name) != value]
    if differing:
        return "; ".join(f"--data.{name}: {there.get(name)!r} there, {options[name]!r} here" for name in differing)
    return (
        "image files have changed since"
        if what == "images"
        else "the annotation file has changed, or the calibration whose samples are held back"
    )


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).translate(_ESCAPED) + "\n"


_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""What many readers take for the end of a line, such as ``str.splitlines``."""


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
