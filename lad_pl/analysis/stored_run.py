"""Reads the run folder of a finished stage: the input of sweep, report and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lad_pl.calibrate import load_calibration
from lad_pl.errors import UserError
from lad_pl.evidence.store import read_prompts
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.files import read_json
from lad_pl.metrics import UNREADABLE
from lad_pl.readouts import ReadoutSettings
from lad_pl.run.folder import Record, RunFolder
from lad_pl.types import Calibration


@dataclass(frozen=True)
class StoredRun:
    """The finished results of one stage in a run folder.

    Args:
        path: the run folder.
        stage: test, or validate.
    """

    path: Path
    stage: str = "test"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def folder(self) -> RunFolder:
        """Paths of the run's files."""
        return RunFolder(self.path)

    @cached_property
    def report(self) -> dict[str, Any]:
        """The content of metrics.json.

        Raises:
            UserError: it is missing or damaged.
        """
        return self._read(self.folder.metrics(self.stage))

    @cached_property
    def costs(self) -> dict[str, Any]:
        """The content of costs.json: forwards and seconds per prompt by method.

        Raises:
            UserError: it is missing or damaged.
        """
        return self._read(self.folder.costs(self.stage))

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration that the results were made with.

        Raises:
            UserError: there is none, it cannot be read, or it has been replaced by one on other samples.
        """
        calibration, provenance = load_calibration(self._calibration_path)
        if provenance["calibration_samples"] != self.report["settings"]["calibration_samples"]:
            raise UserError(
                f"{self._calibration_path} has been made on other samples since {self.stage} used it; run {self.stage} "
                "with that run folder again."
            )
        return calibration

    @property
    def _calibration_path(self) -> Path:
        return self.path / self.report["calibration"]  # relative to the run folder, or absolute

    @property
    def readout(self) -> ReadoutSettings:
        """The free choices of the correction that the results were made with."""
        return ReadoutSettings(**self.report["settings"]["readout"])

    def prompts(self, heads: bool = True) -> EvidenceRecords:
        """The tested prompts with their evidence; see :func:`lad_pl.evidence.store.read_prompts`."""
        return read_prompts(self.folder.evidence(self.stage), heads)

    def calibration_prompts(self) -> EvidenceRecords:
        """The calibration passes with their evidence; every sample under its N cyclic shifts."""
        return read_prompts(self._calibration_path.with_name(self.folder.evidence("fit").name))

    def records(self) -> list[Record]:
        """The lines of predictions.jsonl, in the order of :meth:`prompts`.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.folder.predictions(self.stage)
        try:
            return self.folder.read_predictions(self.stage)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); run {self.stage} with that run folder again.") from error

    def _read(self, path: Path) -> dict[str, Any]:
        content = read_json(path, f"Run {self.stage} with --trainer.default_root_dir {self.path}.")
        if not isinstance(content, dict):
            raise UserError(f"{path} is not what {self.stage} writes; run {self.stage} with that run folder again.")
        return content


def chosen_positions(records: Sequence[Record], method: str) -> Tensor:
    """(P,) position that a readout or method chose in each line of predictions.jsonl, or lad_pl.metrics.UNREADABLE."""
    chosen = [record["choices"][method] for record in records]
    return torch.tensor([UNREADABLE if position is None else position for position in chosen])
