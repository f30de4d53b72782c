"""Contextual calibration (Zhao et al. 2021): the same prompt with a caption that says nothing shows the bias alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lad_pl.evidence.table import EvidenceRecords
from lad_pl.methods.base import MethodOutput, Pass
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.readouts import EPS, ReadoutSettings, most_attentive_layers
from lad_pl.types import Batch, Evidence, PermutedSample
from lad_pl.vlm import PromptEncoder, VisionLanguageModel


class Contextual(Pass):
    """Each prompt, and from the caption on its content-free counterpart."""

    name = "contextual"
    methods = ("contextual_calibration", "contextual_attention_over", "contextual_attention_minus")

    def encode(self, encoder: PromptEncoder) -> Callable[[Sequence[PermutedSample]], Any]:
        """Pairs of batches."""
        return partial(encoder.with_content_free, caption=self.settings.content_free)

    def choices_made(self) -> dict[str, Any]:
        """The content-free caption."""
        return {"content_free": self.settings.content_free}

    def measure(
        self, vlm: VisionLanguageModel, batch: tuple[Batch, Batch], trie: AnswerTrie, layers: Sequence[int]
    ) -> MethodOutput:
        """Evidence of both."""
        evidence, free = vlm.evidence_with_content_free(*batch, trie, layers)
        return MethodOutput(evidence, free=free)

    def scores(self, prompts: EvidenceRecords, num_permutations: int, readout: ReadoutSettings) -> dict[str, Tensor]:
        """By log-probabilities, and by attention."""
        assert prompts.free is not None
        scores = (
            prompts.evidence.log_probs - prompts.free.log_probs,
            attention_ratio(prompts.evidence, prompts.free, readout.top_layers),
            attention_difference(prompts.evidence, prompts.free, readout.top_layers),
        )
        return dict(zip(self.methods, scores, strict=True))


def attention_ratio(evidence: Evidence, free: Evidence, top_layers: int) -> Tensor:
    """(P, N): mean over the K layers with most attention mass of log (a_k / a_k under the content-free caption)."""
    masses, others = _layers(evidence, free, top_layers)
    return (masses.clamp_min(EPS).log() - others.clamp_min(EPS).log()).mean(1)


def attention_difference(evidence: Evidence, free: Evidence, top_layers: int) -> Tensor:
    """(P, N): mean over the K layers with most attention mass of a_k less a_k under the content-free caption."""
    masses, others = _layers(evidence, free, top_layers)
    return (masses - others).mean(1)


def _layers(evidence: Evidence, free: Evidence, top_layers: int) -> tuple[Tensor, Tensor]:
    chosen = most_attentive_layers(evidence.layer_attention, top_layers)
    index = chosen[:, :, None].expand(-1, -1, evidence.layer_attention.shape[-1])
    return evidence.layer_attention.gather(1, index), free.layer_attention.gather(1, index)
