"""Contextual calibration (Zhao et al. 2021): subtract what the model answers to a caption that says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lad_pl.evidence.table import EvidenceRecords
from lad_pl.methods.base import Method, MethodOutput, method
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.readouts import EPS, ReadoutSettings, top_layer_masses
from lad_pl.types import Batch, Evidence, PermutedSample
from lad_pl.vlm import PromptEncoder, VisionLanguageModel


@method
class ContextualCalibration(Method):
    """Each prompt, and its content-free counterpart on the shared key-value cache of the images."""

    name = "contextual"
    names = ("contextual_calibration", "contextual_attention_over", "contextual_attention_minus")

    def encode(self, encoder: PromptEncoder) -> Callable[[Sequence[PermutedSample]], Any]:
        """Batches with their content-free prompts."""
        return partial(encoder.with_content_free, caption=self.settings.content_free)

    def recorded_settings(self) -> dict[str, Any]:
        """The content-free caption."""
        return {"content_free": self.settings.content_free}

    def output(self, vlm: VisionLanguageModel, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> MethodOutput:
        """Evidence of both."""
        evidence, content_free = vlm.evidence_with_content_free(batch, trie, layers)
        return MethodOutput(evidence, content_free=content_free)

    def scores(self, records: EvidenceRecords, num_permutations: int, readout: ReadoutSettings) -> dict[str, Tensor]:
        """By log-probabilities, and by attention."""
        assert records.content_free is not None
        scores = (
            records.evidence.log_probs - records.content_free.log_probs,
            attention_ratio(records.evidence, records.content_free, readout.top_layers),
            attention_difference(records.evidence, records.content_free, readout.top_layers),
        )
        return dict(zip(self.names, scores, strict=True))


def attention_ratio(evidence: Evidence, content_free: Evidence, top_layers: int) -> Tensor:
    """(P, N): mean over the K layers with most attention mass of log (a_k / a_k under the content-free caption)."""
    masses, others = top_layer_masses(evidence.layer_attention, top_layers, content_free.layer_attention)
    return (masses.clamp_min(EPS).log() - others.clamp_min(EPS).log()).mean(1)


def attention_difference(evidence: Evidence, content_free: Evidence, top_layers: int) -> Tensor:
    """(P, N): mean over the K layers with most attention mass of a_k minus a_k under the content-free caption."""
    masses, others = top_layer_masses(evidence.layer_attention, top_layers, content_free.layer_attention)
    return (masses - others).mean(1)
