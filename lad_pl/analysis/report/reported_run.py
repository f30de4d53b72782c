"""A finished run as the report reads it: prompts, choices and probabilities by method, checked for consistency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lad_pl.analysis.stored_run import StoredRun, chosen_positions
from lad_pl.errors import UserError
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.readouts import ReadoutSettings, log_probabilities, scale_of
from lad_pl.run.folder import Record
from lad_pl.run.scoring import metrics_of

BASELINE = "vanilla"
_FIELDS = ("readouts", "num_samples", "num_permutations", "num_candidates", "num_calibration_samples", "settings")
_PROBABILITIES = ("log_probability", "posterior")


@dataclass(frozen=True)
class ReportedRun:
    """What is shown of one run. Methods are readouts and methods with forward passes of their own."""

    run: StoredRun
    prompts: EvidenceRecords
    """The P tested prompts; their attention is the mean over heads."""
    records: Sequence[Record]
    """The P lines of predictions.jsonl."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Metrics by method, the baseline first."""
    choices: Mapping[str, Tensor]
    """(P,) chosen position by method, -1 where the answer could not be read."""
    log_probs: Mapping[str, Tensor]
    """(P, N) log-probability of each position by method, for those that score the candidates."""

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.run.name

    @property
    def report(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return self.run.report

    @property
    def num_candidates(self) -> int:
        """N."""
        return self.prompts.num_candidates

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all methods, the baseline first."""
        return tuple(self.metrics)

    @property
    def others(self) -> tuple[str, ...]:
        """Names of all methods but the baseline."""
        return self.methods[1:]

    @cached_property
    def headline(self) -> str:
        """The method that the report is about: agd, else the one that ranks, else the last one."""
        wanted = ("agd", self.report["settings"].get("rank_by"))
        return next((name for name in wanted if name in self.others), self.methods[-1])

    @property
    def calibrated_probabilities(self) -> tuple[str, ...]:
        """Methods whose scores claim to be probabilities."""
        return tuple(name for name in self.methods if name in self.log_probs and scale_of(name) in _PROBABILITIES)

    def correct(self, method: str) -> Tensor:
        """(G, T) whether the method answers each prompt of the G samples correctly."""
        return (self.choices[method] == self.prompts.targets).view(-1, self.prompts.num_permutations)

    def same_prompts(self, other: ReportedRun) -> bool:
        """Whether another run has the same prompts: captions, images, orders and targets, one by one."""
        shown = ("caption", "images", "permutation", "target")
        return len(self.records) == len(other.records) and all(
            all(mine[key] == theirs[key] for key in shown)
            for mine, theirs in zip(self.records, other.records, strict=True)
        )


def read_run(path: Path, stage: str = "test") -> ReportedRun:
    """Read what a run left behind.

    Args:
        path: the run folder.
        stage: test or validate.

    Raises:
        UserError: files are missing, damaged, or do not belong together.
    """
    if not path.is_dir():
        raise UserError(f"There is no run folder {path}; name the trainer.default_root_dir of a finished {stage}.")
    run = StoredRun(path, stage)
    missing = [key for key in _FIELDS if key not in run.report]
    if missing or not isinstance(run.report["readouts"], dict) or not run.report["readouts"]:
        raise UserError(f"{run.folder.metrics(stage)} is not what {stage} writes; run it again.")
    prompts, records = run.prompts(heads=False), run.records()
    try:
        _check_same(run, prompts, records)
        choices = {name: chosen_positions(records, name) for name in run.report["readouts"]}
        log_probs = _log_probs(records, run.readout)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{run.folder.predictions(stage)} is not what {stage} writes; run it again.") from error
    choices = {BASELINE: prompts.evidence.log_probs.argmax(-1), **choices}
    log_probs = {BASELINE: prompts.evidence.log_probs, **log_probs}
    metrics = metrics_of(choices, prompts)
    for name, stored in run.report["readouts"].items():
        if abs(metrics[name]["accuracy"] - stored["accuracy"]) > 1e-9:
            raise UserError(
                f"{run.folder.metrics(stage)} and {run.folder.predictions(stage)} are of different runs ({name} "
                f"differs); run {stage} again."
            )
    return ReportedRun(run, prompts, records, metrics, choices, log_probs)


def _check_same(run: StoredRun, prompts: EvidenceRecords, records: Sequence[Record]) -> None:
    """Refuse files of different runs."""
    predictions, evidence = run.folder.predictions(run.stage), run.folder.evidence(run.stage)
    expected = run.report["num_samples"] * run.report["num_permutations"]
    if not len(prompts) == len(records) == expected:
        raise UserError(
            f"{predictions} has {len(records)} prompts, {evidence} {len(prompts)}, and the metrics are of {expected}; "
            f"run {run.stage} again."
        )
    expected_prompts = zip(prompts.ids, prompts.permutations.tolist(), prompts.targets.tolist(), strict=True)
    for (name, permutation, target), record in zip(expected_prompts, records, strict=True):
        if (name, permutation, target) != (record["id"], record["permutation"], record["target"]):
            raise UserError(
                f"{predictions} and {evidence} are of different prompts (sample {name}); run {run.stage} again."
            )


def _log_probs(records: Sequence[Record], settings: ReadoutSettings) -> dict[str, Tensor]:
    """Scores as log-probabilities (P, N), by method."""
    scored = [name for name in records[0]["choices"] if name in records[0]["scores"]]
    scores = {name: torch.tensor([record["scores"][name] for record in records]).double() for name in scored}
    return {name: log_probabilities(name, values, settings) for name, values in scores.items()}
