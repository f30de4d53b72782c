"""The free choices of the readouts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lad_pl.errors import UserError, check_at_least
from lad_pl.types import Rows

Recipe = Literal["reference", "paper"]
HeadScore = Literal["information", "qr", "core"]


@dataclass(frozen=True)
class ReadoutSettings:
    """The free choices of the correction."""

    recipe: Recipe = "reference"
    """Where the arithmetic of the two differs: the published code (reference) or the printed equations (paper). The
    paper's spans are an option of their own: prompt.spans visual."""
    top_layers: int = 2
    """K: how many of the captured layers, those with the largest attention mass on the images, are read (eq. 8-9)."""
    temperature: float = 5.0
    """tau: sharpness of the posterior over images (eq. 12)."""
    head_exponent: float = 2.0
    """e: the head_information readouts weight a head by its information g to this power; 0 weights all the same."""
    top_heads: int = 8
    """How many heads head_top reads: those with the highest head_score, all weighted the same."""
    head_score: HeadScore = "information"
    """What head_top ranks the heads by: their information in nats (information), their mean attention mass on the
    correct image (qr, arXiv 2506.09944), or its softmax over the images (core, arXiv 2510.02219)."""
    head_fallback: bool = True
    """Whether head_information, head_top and agd_head give agd's scores where calibration samples that were left out
    do not support them (few labels, many heads); false: always the heads'."""
    rows: Rows = "last"
    """Whose attention the readouts read: the last prompt token's (last), that of the caption's tokens (caption), or the
    heads of both (both)."""
    batch: Literal["calibration", "test"] = "calibration"
    """What batch_calibration takes its mean over: the calibration prompts, so that the score of a prompt does not
    depend on the other test prompts, or the tested prompts themselves, as its authors do."""

    def __post_init__(self) -> None:
        check_at_least(1, **{"readout.top_layers": self.top_layers, "readout.top_heads": self.top_heads})
        if not 0 < self.temperature < math.inf:
            raise UserError(f"readout.temperature is {self.temperature}; it must be positive, and finite.")
        if not 0 <= self.head_exponent < math.inf:
            raise UserError(f"readout.head_exponent is {self.head_exponent}; it must be at least 0, and finite.")
