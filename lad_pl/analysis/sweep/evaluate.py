"""The choices and metrics of many settings on the same stored evidence, with what they share computed once.

A readout of the mean over heads is small, and is simply called. The scores of the built-in readouts that weight every
head are linear in the log attention, so those of all weights are one matrix product. Any other readout of every head is
called for each setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lad_pl.analysis.sweep.calibration_subsets import Calibrations, CalibrationSubset, LayerSet
from lad_pl.analysis.sweep.settings_grid import Setting
from lad_pl.calibrate import log_mean_probability
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.metrics import METRICS, finite
from lad_pl.readouts import EPS, READOUTS, HeadInformation, ReadoutSettings, corrected, head_weights, supported
from lad_pl.run.scoring import count_choices
from lad_pl.types import Evidence

SCORED = ("accuracy", "accuracy_std", "rstd", "consistency", "circular_accuracy")
"""The metrics of a sweep."""
Scores = dict[str, float | None]
"""Metric by name, between 0 and 1; None where it is undefined."""
PROMPTS_AT_A_TIME = 1024
_WEIGHTINGS_AT_A_TIME = 256
_SETTINGS_AT_A_TIME = 128


@dataclass(frozen=True)
class Weighting:
    """How the heads are weighted, which several settings may share."""

    information: HeadInformation
    """The field of the calibration."""
    subset: CalibrationSubset | None
    layers: LayerSet | None
    exponent: float


class Evaluation:
    """What every setting chooses on any prompts.

    Args:
        settings: all of them.
        calibrations: on the stored calibration samples.
        run: the run's own choices, for what a setting leaves open.
        log_probs: (P, N) of all tested prompts, where batch calibration takes its mean over these.
    """

    def __init__(
        self, settings: Sequence[Setting], calibrations: Calibrations, run: ReadoutSettings, log_probs: Tensor
    ) -> None:
        self.settings = settings
        self._calibrations = calibrations
        self._run = run
        self._batch_prior = log_mean_probability(log_probs) if run.batch == "test" else None
        self._by_weighting: dict[Weighting, list[int]] = {}
        self._called: list[int] = []
        for number, setting in enumerate(settings):
            information = READOUTS[setting.readout].information
            if information is None:
                self._called.append(number)
            else:
                exponent = run.head_exponent if setting.head_exponent is None else setting.head_exponent
                weighting = Weighting(information, setting.subset, setting.layers, exponent)
                self._by_weighting.setdefault(weighting, []).append(number)

    def choices(self, parts: Iterable[EvidenceRecords]) -> Iterator[Tensor]:
        """The chosen positions (settings, P'), int16, of one portion of the prompts after the other."""
        for part in parts:
            for first in range(0, len(part), PROMPTS_AT_A_TIME):
                yield self._choices(part.evidence[first : first + PROMPTS_AT_A_TIME])

    def _choices(self, evidence: Evidence) -> Tensor:
        chosen = torch.empty(len(self.settings), len(evidence), dtype=torch.int16)
        for number, choices in (*self._of_called(evidence), *self._of_weighted(evidence)):
            chosen[number] = choices
        return chosen

    # ------------------------------------------------------------------------------------ readouts that are called

    def _of_called(self, evidence: Evidence) -> Iterator[tuple[int, Tensor]]:
        on_layers: dict[tuple[LayerSet | None, bool], Evidence] = {}
        for number in self._called:
            setting = self.settings[number]
            readout = READOUTS[setting.readout]
            key = setting.layers, readout.per_head or self._run.rows != "last"
            if key not in on_layers:
                on_layers[key] = _on_layers(evidence, *key)
            calibration = self._calibrations.of(setting.subset, setting.layers, heads=readout.per_head)
            if self._batch_prior is not None:
                calibration = replace(calibration, log_batch_prior=self._batch_prior)
            yield number, readout(on_layers[key], calibration, setting.readout_settings(self._run)).argmax(-1)

    # ------------------------------------------------------------------------- readouts that are a weighting of heads

    def _of_weighted(self, evidence: Evidence) -> Iterator[tuple[int, Tensor]]:
        if not self._by_weighting:
            return
        attention = evidence.of_rows(self._run.rows).attention
        num_prompts, num_layers, num_heads, n = attention.shape
        logs = attention.clamp_min(EPS).log()
        flat = logs.permute(1, 2, 0, 3).reshape(num_layers * num_heads, num_prompts * n)
        for weightings, weights, offsets in self._weights:
            scores = (weights @ flat).view(-1, num_prompts, n) - offsets[:, None]
            scores -= scores.mean(-1, keepdim=True)
            for weighting, score in zip(weightings, scores, strict=True):
                for number in self._by_weighting[weighting]:
                    yield number, self._weighted_choice(self.settings[number], evidence, score)

    def _weighted_choice(self, setting: Setting, evidence: Evidence, score: Tensor) -> Tensor:
        readout, settings = READOUTS[setting.readout], setting.readout_settings(self._run)
        calibration = self._calibrations.of(setting.subset, setting.layers, heads=True)
        if readout.information == "head_information" and not supported(
            "head_information", calibration.of_rows(settings.rows), settings
        ):
            return readout(_on_layers(evidence, setting.layers, True), calibration, settings).argmax(-1)
        if readout.scale == "nats":
            return score.argmax(-1)
        pi = (settings.temperature * score).softmax(-1)
        return corrected(evidence.log_probs, pi, calibration, settings.recipe).argmax(-1)

    @cached_property
    def _weights(self) -> list[tuple[list[Weighting], Tensor, Tensor]]:
        """A few hundred weightings at a time, their weights (W, L H), and the offsets (W, N) of their scores."""
        weightings = list(self._by_weighting)
        parts = [
            weightings[first : first + _WEIGHTINGS_AT_A_TIME]
            for first in range(0, len(weightings), _WEIGHTINGS_AT_A_TIME)
        ]
        blocks = []
        for part in parts:
            weights, offsets = zip(*map(self._weight, part), strict=True)
            blocks.append((part, torch.stack(weights), torch.stack(offsets)))
        return blocks

    def _weight(self, weighting: Weighting) -> tuple[Tensor, Tensor]:
        calibration = self._calibrations.of(weighting.subset, weighting.layers, heads=True).of_rows(self._run.rows)
        weights = head_weights(getattr(calibration, weighting.information), weighting.exponent)
        on_all_layers = weights.new_zeros(self._calibrations.num_layers, weights.shape[1])
        on_all_layers[slice(None) if weighting.layers is None else list(weighting.layers.indices)] = weights
        return on_all_layers.flatten(), torch.einsum("lh,lhn->n", weights, calibration.log_attention_mean)


def _on_layers(evidence: Evidence, layers: LayerSet | None, per_head: bool) -> Evidence:
    chosen = slice(None) if layers is None else list(layers.indices)
    if per_head:
        return evidence.of_layers(chosen)
    mean = evidence.layer_attention[:, chosen]
    return Evidence(evidence.log_probs, mean[:, :, None], mean)


def score(choices: Tensor, prompts: EvidenceRecords) -> list[Scores]:
    """The metrics of every setting.

    Args:
        choices: (S, P) positions.
        prompts: the P prompts, the T permutations of a sample one after the other.
    """
    scores: list[Scores] = []
    for part in choices.split(_SETTINGS_AT_A_TIME):
        counts = count_choices(part.long(), prompts)
        columns = [finite(METRICS[name](counts).tolist()) for name in SCORED]
        scores += [dict(zip(SCORED, values, strict=True)) for values in zip(*columns, strict=True)]
    return scores
