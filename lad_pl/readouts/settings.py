"""The free choices of the readouts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lad_pl.errors import UserError, check_at_least

Recipe = Literal["reference", "paper"]


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
    batch: Literal["calibration", "test"] = "calibration"
    """What batch_calibration takes its mean over: the calibration prompts, so that the score of a prompt does not
    depend on the other test prompts, or the tested prompts themselves, as its authors do."""

    def __post_init__(self) -> None:
        check_at_least(1, **{"readout.top_layers": self.top_layers})
        if not 0 < self.temperature < math.inf:
            raise UserError(f"readout.temperature is {self.temperature}; it must be positive, and finite.")
        if not 0 <= self.head_exponent < math.inf:
            raise UserError(f"readout.head_exponent is {self.head_exponent}; it must be at least 0, and finite.")
