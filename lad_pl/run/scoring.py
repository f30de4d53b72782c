"""From stored evidence to scores, choices and metrics, without a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lad_pl.calibrate import log_mean_probability
from lad_pl.evidence.store import read_prompts, stream_prompts
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.metrics import UNREADABLE, position_metrics
from lad_pl.prompts.template import PromptSpec
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.types import Calibration, Sample

if TYPE_CHECKING:  # it imports transformers, which a replay does not need
    from lad_pl.methods import Pass


@dataclass
class Results:
    """What P tested prompts come to, by readout and by method."""

    prompts: EvidenceRecords
    """The P prompts; their attention is the mean over heads."""
    scores: dict[str, Tensor]
    """Scores (P, N) by name; methods that answer in words have none."""
    choices: dict[str, Tensor]
    """Chosen position (P,) by name, :data:`UNREADABLE` where there is none."""
    costs: dict[str, dict[str, float]]
    """Forward passes and seconds per tested prompt, by name."""

    def add(self, a_pass: Pass, prompts: EvidenceRecords, prompt: PromptSpec, readout: ReadoutSettings) -> None:
        """Take in what another pass, of that prompt, tells about the same samples."""
        scores = a_pass.scores(prompts, self.prompts.num_permutations, readout)
        choices = choices_of(scores) | a_pass.choices(prompts, prompt)
        self.scores |= scores
        self.choices |= choices
        self.costs |= dict.fromkeys(choices, cost(prompts, len(self.prompts)))

    def keep(self, names: Sequence[str]) -> None:
        """Forget all but the named readouts and methods."""
        for values in (self.scores, self.choices, self.costs):
            for name in [name for name in values if name not in names]:
                del values[name]

    def metrics(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """All metrics of the named readouts and methods, as :func:`metrics_of` has them."""
        return metrics_of({name: self.choices[name] for name in names}, self.prompts)

    def records(self, samples: Sequence[Sample], rank_by: str) -> Iterator[dict[str, Any]]:
        """One line of predictions.jsonl per prompt.

        Args:
            samples: of the stage; the prompts' sample_index are indices into it.
            rank_by: the readout that orders the images.
        """
        prompts = self.prompts
        rankings = self.scores[rank_by].argsort(dim=-1, descending=True, stable=True)
        for row, group in enumerate(prompts.sample_index.tolist()):
            permutation, target = prompts.permutations[row].tolist(), int(prompts.targets[row])
            yield {
                "id": prompts.ids[row],
                "caption": samples[group].caption,
                "images": list(samples[group].images),
                "permutation": permutation,
                "target": target if target >= 0 else None,
                "log_probs": prompts.evidence.log_probs[row].tolist(),
                "attention": prompts.evidence.layer_attention[row].tolist(),
                "scores": {name: values[row].tolist() for name, values in self.scores.items()},
                "choices": {name: _readable(int(chosen[row])) for name, chosen in self.choices.items()},
                "ranking": [permutation[position] for position in rankings[row].tolist()],
            }


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


def cost(prompts: EvidenceRecords, num_tested: int) -> dict[str, float]:
    """Forward passes of the language model and seconds that a pass took per tested prompt."""
    return {"forwards": int(prompts.forwards.sum()) / num_tested, "seconds": float(prompts.seconds.sum()) / num_tested}


def with_batch_prior(prompts: EvidenceRecords, calibration: Calibration, settings: ReadoutSettings) -> Calibration:
    """The calibration with the prior of batch calibration taken from where ``settings.batch`` says."""
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
    shape = (-1, prompts.num_permutations)
    targets = prompts.targets.view(shape)
    permutations = prompts.permutations.view(*shape, prompts.num_candidates)
    metrics = position_metrics(prompts.num_candidates, prompts.num_permutations, sync_on_compute=False)
    report = {}
    for name, chosen in choices.items():
        metrics.reset()
        metrics.update(chosen.view(shape), targets, permutations)
        report[name] = {key: _finite(value.tolist()) for key, value in metrics.compute().items()}
    return report


def _readable(choice: int) -> int | None:
    return None if choice == UNREADABLE else choice


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None
