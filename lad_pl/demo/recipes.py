"""The settings of each demo's training, chosen on the validation sets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lad_pl.demo.architecture import Architecture
from lad_pl.demo.language import PHASE_A, PHASE_B, LanguageRecipe, control
from lad_pl.demo.pairs import HARD
from lad_pl.demo.scenes import STANDARD
from lad_pl.demo.sets import CANDIDATE_COUNTS
from lad_pl.demo.vision import VisionRecipe
from lad_pl.demo.world import World


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run except the seed."""

    world: World = STANDARD
    architecture: Architecture = field(default_factory=Architecture)
    vision: VisionRecipe = field(default_factory=VisionRecipe)
    phase_a: LanguageRecipe = PHASE_A
    phase_b: LanguageRecipe = PHASE_B
    jitters: int = 6
    """Pictures per training scene."""
    candidate_counts: tuple[int, ...] = CANDIDATE_COUNTS
    samples: int | None = None
    """Evaluate on the first so many samples of a set; None for all."""

    @property
    def control(self) -> LanguageRecipe:
        """Phase B with the correct image at uniform positions."""
        return control(self.phase_b)


RECIPES = {
    "standard": Recipe(),
    "hard": Recipe(
        world=HARD,
        architecture=Architecture(layers=6, width=128, heads=8),
        vision=VisionRecipe(steps=500),
        phase_a=replace(PHASE_A, summary_weight=1.0, narrow_share=0.6, retrieval_layers=(2, 3, 4)),
        phase_b=replace(PHASE_B, steps=400, narrow_share=0.3, retrieval_layers=(2, 3, 4)),
        jitters=3,
    ),
}
