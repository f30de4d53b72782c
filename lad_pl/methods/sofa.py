"""SoFA (Tian et al., CVPR 2025): softened attention between images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from lad_pl.methods.base import MethodOutput, Pass
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.types import Batch
from lad_pl.vlm import VisionLanguageModel
from lad_pl.vlm.sofa import Sofa


class SofaPublished(Pass):
    """SoFA as the published LAD code has it; see :class:`lad_pl.vlm.sofa.Sofa`."""

    name = "sofa"
    methods = ("sofa",)
    variant: ClassVar[Literal["published", "paper"]] = "published"

    def choices_made(self) -> dict[str, Any]:
        """Weight and layers."""
        return {"sofa_sigma": self.settings.sofa_sigma, "sofa_every": self.settings.sofa_every}

    def measure(self, vlm: VisionLanguageModel, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> MethodOutput:
        """Evidence under softened attention."""
        sofa = Sofa(self.variant, self.settings.sofa_sigma, self.settings.sofa_every)
        return MethodOutput(vlm.evidence(batch, trie, layers, sofa))


class SofaPaper(SofaPublished):
    """SoFA as its own paper has it."""

    name = "sofa_paper"
    methods = ("sofa_paper",)
    variant = "paper"
