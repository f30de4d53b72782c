"""Contextual calibration (Zhao et al. 2021): subtract what the model answers to a caption that says nothing.

In-Context Re-ranking (arXiv 2410.02642) does so with the attention of the caption's tokens, image token by image token.
Its passes are the same, and so is its evidence file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lad_pl.evidence.table import EvidenceRecords
from lad_pl.methods.base import Method, MethodOutput, method
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.readouts import EPS, ReadoutSettings, top_layer_masses
from lad_pl.types import Batch, Evidence, PermutedSample, Rows
from lad_pl.vlm import PromptEncoder, VisionLanguageModel
from lad_pl.vlm.model import Pass


@method
class ContextualCalibration(Method):
    """Each prompt, and its content-free counterpart on the shared key-value cache of the images."""

    name = "contextual"
    names = ("contextual_calibration", "contextual_attention_over", "contextual_attention_minus", "icr")

    def encode(self, encoder: PromptEncoder) -> Callable[[Sequence[PermutedSample]], Any]:
        """Batches with their content-free prompts."""
        return partial(encoder.with_content_free, caption=self.settings.content_free)

    def recorded_settings(self) -> dict[str, Any]:
        """The content-free caption."""
        return {"content_free": self.settings.content_free}

    def reads_captions(self, names: Sequence[str], rows: Rows) -> bool:
        """For In-Context Re-ranking."""
        return "icr" in names

    def output(self, vlm: VisionLanguageModel, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> MethodOutput:
        """Evidence of both, and the scores of In-Context Re-ranking."""
        own, free = vlm.passes_with_content_free(batch, trie, layers)
        return MethodOutput(own.evidence, content_free=free.evidence, icr=_icr(own, free, batch))

    def scores(self, records: EvidenceRecords, num_permutations: int, readout: ReadoutSettings) -> dict[str, Tensor]:
        """By log-probabilities, and by attention; icr is missing where an earlier version stored the evidence."""
        assert records.content_free is not None
        scores = (
            records.evidence.log_probs - records.content_free.log_probs,
            attention_ratio(records.evidence, records.content_free, readout.top_layers),
            attention_difference(records.evidence, records.content_free, readout.top_layers),
        )
        found = dict(zip(self.names, scores, strict=False))
        return found if records.icr is None else {**found, "icr": records.icr}


def _icr(own: Pass, free: Pass, batch: Batch) -> Tensor | None:
    """(B, N) scores of the prompts; None where the captions' attention cannot be compared."""
    assert batch.content_free is not None
    if own.caption_on_tokens is None or free.caption_on_tokens is None:
        return None
    return icr_scores(
        own.caption_on_tokens.cpu(),
        free.caption_on_tokens.cpu(),
        batch.position_of_token.cpu(),
        batch.content_free.position_of_token.cpu(),
        batch.image_rows.shape[1],
    )


def icr_scores(
    attention: Tensor, content_free: Tensor, positions: Tensor, content_free_positions: Tensor, num_candidates: int
) -> Tensor:
    """In-Context Re-ranking: per image, the sum over its tokens of what the caption adds to their attention.

    With c = A - A_NA over an image's tokens, those with c <= mean(c) - 2 std(c) are left out. The standard deviation is
    that of a sample (ddof 1), as in the published code; where it is 0, or the image has one token, none is left out.

    Args:
        attention: A, (B, S) attention of the captions' tokens to every token of the prompts.
        content_free: A_NA, (B, S') the same under the content-free caption.
        positions: (B, S) position of the image that each prompt token belongs to, or -1.
        content_free_positions: (B, S') the same of the content-free prompts, which show the same images.
        num_candidates: N.

    Returns:
        (B, N) scores.
    """
    scores = attention.new_zeros(len(attention), num_candidates, dtype=torch.float64)
    rows = zip(attention.double(), content_free.double(), positions, content_free_positions, strict=True)
    for row, (with_caption, without, of_token, of_free_token) in enumerate(rows):
        for position in range(num_candidates):
            c = with_caption[of_token == position] - without[of_free_token == position]
            scores[row, position] = c[_kept(c)].sum()
    return scores


def _kept(c: Tensor) -> Tensor:
    """(W,) which of an image's W tokens count."""
    spread = c.std() if len(c) > 1 else c.new_zeros(())
    return (c > c.mean() - 2 * spread) | (spread == 0)


def attention_ratio(evidence: Evidence, content_free: Evidence, top_layers: int) -> Tensor:
    """(P, N): mean over the K layers with most attention mass of log (a_k / a_k under the content-free caption)."""
    masses, others = top_layer_masses(evidence.layer_attention, top_layers, content_free.layer_attention)
    return (masses.clamp_min(EPS).log() - others.clamp_min(EPS).log()).mean(1)


def attention_difference(evidence: Evidence, content_free: Evidence, top_layers: int) -> Tensor:
    """(P, N): mean over the K layers with most attention mass of a_k minus a_k under the content-free caption."""
    masses, others = top_layer_masses(evidence.layer_attention, top_layers, content_free.layer_attention)
    return (masses - others).mean(1)
