"""From stored evidence to scores, choices and metrics, without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lad_pl.calibrate import calibrate, log_mean_probability, warn_of_attention
from lad_pl.errors import UserError
from lad_pl.evidence.store import read_prompts, stream_prompts
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.metrics.counts import METRICS, UNREADABLE, Counts, count, finite
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.types import Calibration, Sample

if TYPE_CHECKING:  # it imports transformers, which scoring does not need
    from lad_pl.methods.runner import MethodRunner


@dataclass
class Results:
    """Scores and choices of P tested prompts, by readout and method."""

    prompts: EvidenceRecords
    """The P prompts; their attention is the mean over heads."""
    scores: dict[str, Tensor]
    """Scores (P, N) by name; methods that generate text have none."""
    choices: dict[str, Tensor]
    """Chosen position (P,) by name, :data:`UNREADABLE` where there is none."""
    costs: dict[str, dict[str, float]]
    """Forward passes and seconds per tested prompt, by name."""

    def add(self, runner: MethodRunner, readout: ReadoutSettings) -> None:
        """Add the scores and choices of another method on the same samples, from its finished store."""
        records = read_prompts(runner.store.path, heads=False)
        scores = runner.method.scores(records, self.prompts.num_permutations, readout)
        choices = choices_of(scores) | runner.method.choices(records, runner.encoder.prompt)
        self.scores |= scores
        self.choices |= choices
        self.costs |= dict.fromkeys(choices, cost(records, len(self.prompts)))

    def keep(self, names: Sequence[str]) -> None:
        """Drop all but the named readouts and methods."""
        for values in (self.scores, self.choices, self.costs):
            for name in [name for name in values if name not in names]:
                del values[name]

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """Metrics of the named readouts and methods (see :func:`metrics_of`), and what they were measured on."""
        prompts = self.prompts
        return {
            "readouts": metrics_of({name: self.choices[name] for name in names}, prompts),
            "num_samples": len(prompts) // prompts.num_permutations,
            "num_permutations": prompts.num_permutations,
            "num_candidates": prompts.num_candidates,
        }

    def records(self, samples: Sequence[Sample], rank_by: str) -> Iterator[dict[str, Any]]:
        """One line of predictions.jsonl per prompt.

        Args:
            samples: of the stage; ``sample_index`` of the prompts is an index into it.
            rank_by: the readout that orders the images.
        """
        prompts = self.prompts
        rankings = self.scores[rank_by].argsort(dim=-1, descending=True, stable=True)
        for row, index in enumerate(prompts.sample_index.tolist()):
            permutation, target = prompts.permutations[row].tolist(), int(prompts.targets[row])
            yield {
                "id": prompts.ids[row],
                "caption": samples[index].caption,
                "images": list(samples[index].images),
                "permutation": permutation,
                "target": target if target >= 0 else None,
                "log_probs": prompts.evidence.log_probs[row].tolist(),
                "attention": prompts.evidence.layer_attention[row].tolist(),
                "scores": {name: values[row].tolist() for name, values in self.scores.items()},
                "choices": {name: _readable(int(chosen[row])) for name, chosen in self.choices.items()},
                "ranking": [permutation[position] for position in rankings[row].tolist()],
            }


def calibrate_store(path: str | Path, settings: ReadoutSettings = ReadoutSettings()) -> Calibration:  # noqa: B008
    """Calibrate on the calibration passes of a finished store.

    Args:
        path: of the store.
        settings: with which the readouts are tried on samples that are left out.

    Raises:
        UserError: the store cannot be read; or as :func:`lad_pl.calibrate.calibrate`.
    """
    records = read_prompts(path)
    return calibrate(records.evidence, records.targets, records.permutations, records.sample_index, settings)


def score_store(path: str | Path, calibration: Calibration, settings: ReadoutSettings, names: Sequence[str]) -> Results:
    """Score every prompt of a store by the named readouts; a few thousand prompts' heads in memory at a time.

    Raises:
        UserError: the store cannot be read, or has fewer layers than ``settings.top_layers``.
    """
    prompts = read_prompts(path, heads=False)
    calibration = with_batch_prior(prompts, calibration, settings)
    parts = [scores_of(part, calibration, settings, names) for part in stream_prompts(path)]
    scores = {name: torch.cat([part[name] for part in parts]) for name in names}
    return Results(prompts, scores, choices_of(scores), dict.fromkeys(names, cost(prompts, len(prompts))))


def score_methods(
    runners: Sequence[MethodRunner],
    calibration: Calibration,
    settings: ReadoutSettings,
    readouts: Sequence[str],
    methods: Sequence[str],
) -> Results:
    """Score the finished stores of a stage.

    Args:
        runners: of the readouts' evidence, then of the other methods.
        calibration: of the readouts.
        settings: the readouts' free choices.
        readouts: names of the readouts to score.
        methods: names of the methods to keep.

    Raises:
        UserError: as :func:`score_store`; or a method's evidence gives no scores.
    """
    warn_of_attention(calibration, settings, readouts)
    first, *others = runners
    results = score_store(first.store.path, calibration, settings, readouts)
    for runner in others:
        results.add(runner, settings)
    for name in (name for runner in others for name in runner.method.names if name in methods):
        if name not in results.choices:
            raise UserError(
                f"The evidence has no scores of {name}. If an earlier version of lad_pl stored it, run again with "
                "--model.overwrite true; otherwise some caption's tokens cannot be told from the text around it or see "
                "no later image: choose other methods."
            )
    results.keep((*readouts, *methods))
    return results


def cost(prompts: EvidenceRecords, num_tested: int) -> dict[str, float]:
    """Forward passes of the language model, and seconds, per tested prompt."""
    return {"forwards": int(prompts.forwards.sum()) / num_tested, "seconds": float(prompts.seconds.sum()) / num_tested}


def with_batch_prior(prompts: EvidenceRecords, calibration: Calibration, settings: ReadoutSettings) -> Calibration:
    """The calibration, its prior of batch calibration taken from the tested prompts if ``settings.batch`` is test."""
    if settings.batch == "calibration":
        return calibration
    return replace(calibration, log_batch_prior=log_mean_probability(prompts.evidence.log_probs))


def scores_of(
    prompts: EvidenceRecords, calibration: Calibration, settings: ReadoutSettings, names: Sequence[str]
) -> dict[str, Tensor]:
    """Scores (P, N) of the named readouts for P prompts."""
    return {name: READOUTS[name](prompts.evidence, calibration, settings) for name in names}


def choices_of(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The position (P,) with the highest score, by readout."""
    return {name: values.argmax(-1) for name, values in scores.items()}


def metrics_of(choices: Mapping[str, Tensor], prompts: EvidenceRecords) -> dict[str, dict[str, Any]]:
    """All metrics of :mod:`lad_pl.metrics` by readout, as plain numbers; what is undefined is None.

    Args:
        choices: positions (P,) by readout, -1 where none could be read.
        prompts: the same P prompts, the T permutations of a sample one after the other.
    """
    counts = {name: count_choices(chosen, prompts) for name, chosen in choices.items()}
    return {
        name: {key: finite(metric(found).tolist()) for key, metric in METRICS.items()} for name, found in counts.items()
    }


def count_choices(choices: Tensor, prompts: EvidenceRecords) -> Counts:
    """Count chosen positions (..., P) by sample and permutation.

    Args:
        choices: positions, -1 where none could be read; leading axes are the settings that are compared.
        prompts: the same P prompts, the T permutations of a sample one after the other.
    """
    shape = (len(prompts) // prompts.num_permutations, prompts.num_permutations)
    permutations = prompts.permutations.view(*shape, prompts.num_candidates)
    return count(choices.view(*choices.shape[:-1], *shape), prompts.targets.view(shape), permutations)


def _readable(choice: int) -> int | None:
    return None if choice == UNREADABLE else choice
