"""The choices of many settings on the same stored evidence, with what they share computed once.

The readouts of the mean over heads are small, and are :data:`lad_pl.readouts.READOUTS` themselves. The score of the
readouts that weight every head is linear in the log attention, so those of all weights are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lad_pl.analysis.sweep.calibration_subsets import Calibrations, Draw, LayerSet
from lad_pl.analysis.sweep.settings_grid import HEAD_READOUTS, LABEL_FREE_READOUTS, Setting
from lad_pl.calibrate import log_mean_probability
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.metrics import accuracy_per_permutation, recall_std
from lad_pl.readouts import EPS, READOUTS, ReadoutSettings, corrected, head_weights
from lad_pl.types import Calibration, Evidence

PROMPTS_AT_A_TIME = 1024
_WEIGHTINGS_AT_A_TIME = 256


@dataclass(frozen=True)
class Weighting:
    """One way to weight the heads, which several settings may share."""

    label_free: bool
    draw: Draw | None
    layers: LayerSet
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
        self._of_mean: list[int] = []
        for number, setting in enumerate(settings):
            if setting.readout in HEAD_READOUTS:
                self._by_weighting.setdefault(_weighting(setting), []).append(number)
            else:
                self._of_mean.append(number)

    def choices(self, parts: Iterable[EvidenceRecords]) -> Iterator[Tensor]:
        """The chosen positions (settings, P'), int16, of one portion of the prompts after the other."""
        for part in parts:
            for first in range(0, len(part), PROMPTS_AT_A_TIME):
                yield self._choices(part.evidence[first : first + PROMPTS_AT_A_TIME])

    def _choices(self, evidence: Evidence) -> Tensor:
        chosen = torch.empty(len(self.settings), len(evidence), dtype=torch.int16)
        for number, scores in (*self._mean_scores(evidence), *self._head_scores(evidence)):
            chosen[number] = scores
        return chosen

    # ---------------------------------------------------------------------------------------- the mean over the heads

    def _mean_scores(self, evidence: Evidence) -> Iterator[tuple[int, Tensor]]:
        on_layers: dict[LayerSet | None, Evidence] = {None: evidence}
        for number in self._of_mean:
            setting = self.settings[number]
            layers = setting.layers
            if layers is not None and layers not in on_layers:
                mean = evidence.layer_attention[:, list(layers.places)]
                on_layers[layers] = Evidence(evidence.log_probs, mean[:, :, None], mean)
            calibration = self._calibration(setting)
            settings = setting.readout_settings(self._run)
            yield number, READOUTS[setting.readout](on_layers[layers], calibration, settings).argmax(-1)

    def _calibration(self, setting: Setting) -> Calibration:
        calibration = self._calibrations.of(setting.draw, setting.layers)
        if self._batch_prior is None:
            return calibration
        return replace(calibration, log_batch_prior=self._batch_prior)

    # ------------------------------------------------------------------------------------------ every head by itself

    def _head_scores(self, evidence: Evidence) -> Iterator[tuple[int, Tensor]]:
        if not self._by_weighting:
            return
        num_prompts, num_layers, num_heads, n = evidence.attention.shape
        logs = evidence.attention.clamp_min(EPS).log()
        flat = logs.permute(1, 2, 0, 3).reshape(num_layers * num_heads, num_prompts * n)
        for weightings, weights, offsets in self._weights:
            scores = (weights @ flat).view(-1, num_prompts, n) - offsets[:, None]
            scores -= scores.mean(-1, keepdim=True)
            for weighting, score in zip(weightings, scores, strict=True):
                for number in self._by_weighting[weighting]:
                    yield number, self._head_choice(self.settings[number], evidence.log_probs, score)

    def _head_choice(self, setting: Setting, log_probs: Tensor, score: Tensor) -> Tensor:
        if setting.recipe is None:
            return score.argmax(-1)
        settings = setting.readout_settings(self._run)
        pi = (settings.temperature * score).softmax(-1)
        return corrected(log_probs, pi, self._calibrations.of(setting.draw, None), settings.recipe).argmax(-1)

    @cached_property
    def _weights(self) -> list[tuple[list[Weighting], Tensor, Tensor]]:
        """Weightings, a few hundred at a time, with their weights (W, L H) and what comes off their scores (W, N)."""
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
        calibration = self._calibrations.of(weighting.draw, weighting.layers, weighting.label_free)
        information = calibration.head_information_label_free if weighting.label_free else calibration.head_information
        weights = head_weights(information, weighting.exponent)
        everywhere = weights.new_zeros(self._calibrations.num_layers, weights.shape[1])
        everywhere[list(weighting.layers.places)] = weights
        return everywhere.flatten(), torch.einsum("lh,lhn->n", weights, calibration.log_attention_mean)


def _weighting(setting: Setting) -> Weighting:
    chosen: Any = (setting.draw, setting.layers, setting.head_exponent)
    return Weighting(setting.readout in LABEL_FREE_READOUTS, *chosen)


METRICS = ("accuracy", "accuracy_std", "rstd", "consistency", "circular_accuracy")


Scores = dict[str, float | None]
"""Metric by name, between 0 and 1; None where it is undefined."""


_SETTINGS_AT_A_TIME = 128


@dataclass(frozen=True)
class Counts:
    """The sums of :class:`lad_pl.metrics.PermutationMetric`, of S settings."""

    confusion: Tensor
    """(S, N, N): true position by chosen position."""
    correct: Tensor
    """(S, T): samples answered right under each permutation."""
    consistent: Tensor
    """(S,): samples for which every permutation chooses the same image."""
    always_correct: Tensor
    """(S,): samples answered right under every permutation."""


def score(choices: Tensor, prompts: EvidenceRecords) -> list[Scores]:
    """The metrics of every setting.

    Args:
        choices: (S, P) positions.
        prompts: the P prompts, the T permutations of a sample one after the other.
    """
    return [scores for part in choices.split(_SETTINGS_AT_A_TIME) for scores in _scores(part, prompts)]


def _scores(choices: Tensor, prompts: EvidenceRecords) -> Iterator[Scores]:
    counts = count(choices.long(), prompts)
    num_samples = torch.tensor(len(prompts) // prompts.num_permutations)
    for number, correct in enumerate(counts.correct):
        accuracies = accuracy_per_permutation(correct, num_samples)
        values = {
            "accuracy": accuracies.mean(),
            "accuracy_std": accuracies.std(correction=1) if len(accuracies) > 1 else math.nan,
            "rstd": recall_std(counts.confusion[number]),
            "consistency": counts.consistent[number].double() / num_samples,
            "circular_accuracy": counts.always_correct[number].double() / num_samples,
        }
        yield {name: _finite(float(values[name])) for name in METRICS}


def count(choices: Tensor, prompts: EvidenceRecords) -> Counts:
    """Count what S settings chose; ``choices`` (S, P) positions."""
    n, num_prompts = prompts.num_candidates, len(prompts)
    by_sample = (len(choices), -1, prompts.num_permutations)
    right = (choices == prompts.targets).view(by_sample)
    images = prompts.permutations.flatten()[torch.arange(num_prompts) * n + choices].view(by_sample)
    cells = torch.arange(len(choices))[:, None] * n * n + prompts.targets * n + choices
    return Counts(
        confusion=torch.bincount(cells.flatten(), minlength=len(choices) * n * n).view(-1, n, n),
        correct=right.sum(1),
        consistent=(images == images[..., :1]).all(2).sum(1),
        always_correct=right.all(2).sum(1),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
