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
    phases: tuple[LanguageRecipe, ...] = (PHASE_A, PHASE_B)
    """The language phases in turn; the last one has the skewed positions."""
    jitters: int = 6
    """Pictures per training scene."""
    candidate_counts: tuple[int, ...] = CANDIDATE_COUNTS
    samples: int | None = None
    """Evaluate on the first so many samples of a set; None for all."""

    @property
    def control(self) -> tuple[LanguageRecipe, ...]:
        """The phases, the last one with the correct image at uniform positions."""
        return (*self.phases[:-1], control(self.phases[-1]))


RECIPES = {
    "standard": Recipe(),
    "hard": Recipe(
        world=HARD,
        architecture=Architecture(layers=6),
        vision=VisionRecipe(steps=600),
        phases=(PHASE_A, replace(PHASE_B, steps=300)),
        jitters=3,
    ),
}
