"""SoFA (Tian et al., CVPR 2025): softened causal attention between images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lad_pl.methods.base import Method, MethodOutput, method
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.types import Batch
from lad_pl.vlm.sofa import Sofa

if TYPE_CHECKING:
    from lad_pl.vlm import VisionLanguageModel


@method
class SofaPublished(Method):
    """SoFA as in the published LAD code; see :class:`lad_pl.vlm.sofa.Sofa`."""

    name = "sofa"
    variant: ClassVar[Literal["published", "paper"]] = "published"

    def recorded_settings(self) -> dict[str, Any]:
        """Sigma, and which layers are softened."""
        return {"sofa_sigma": self.settings.sofa_sigma, "sofa_every": self.settings.sofa_every}

    def output(self, vlm: VisionLanguageModel, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> MethodOutput:
        """Evidence under softened attention."""
        sofa = Sofa(self.variant, self.settings.sofa_sigma, self.settings.sofa_every)
        return MethodOutput(vlm.evidence(batch, trie, layers, sofa))


@method
class SofaPaper(SofaPublished):
    """SoFA as in its own paper."""

    name = "sofa_paper"
    variant = "paper"
