"""One point of a grid, and which factors matter to which readout."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lad_pl.analysis.sweep.calibration_subsets import Draw
from lad_pl.analysis.sweep.layers import LayerSet
from lad_pl.readouts import ReadoutSettings, Recipe

FACTORS = ("recipe", "top_layers", "temperature", "layers", "head_exponent", "num_calibration")
"""What a readout may depend on, by the names of the columns of sweep.csv."""
_OF_READOUT = {
    "vanilla": (),
    "pride": ("num_calibration",),
    "pride_reference": ("recipe", "num_calibration"),
    "batch_calibration": ("num_calibration",),
    "raw_attention": ("top_layers", "layers"),
    # The temperature sharpens the posterior, and leaves the order of the images as it is.
    "purified_attention": ("recipe", "top_layers", "layers", "num_calibration"),
    "agd": ("recipe", "top_layers", "temperature", "layers", "num_calibration"),
    "head_information": ("layers", "head_exponent", "num_calibration"),
    "head_information_label_free": ("layers", "head_exponent", "num_calibration"),
    "agd_head": ("recipe", "temperature", "layers", "head_exponent", "num_calibration"),
    "agd_head_label_free": ("recipe", "temperature", "layers", "head_exponent", "num_calibration"),
}
HEAD_READOUTS = frozenset(name for name, factors in _OF_READOUT.items() if "head_exponent" in factors)
"""Readouts that look at every head; to the others the mean over the heads is enough."""
LABEL_FREE_READOUTS = frozenset(name for name in HEAD_READOUTS if name.endswith("_label_free"))
Values = Mapping[str, Sequence[Any]]
"""Values to try, by factor."""


@dataclass(frozen=True)
class Setting:
    """A readout and its free choices; None where a choice does not matter to the readout."""

    readout: str
    recipe: Recipe | None = None
    top_layers: int | None = None
    temperature: float | None = None
    layers: LayerSet | None = None
    head_exponent: float | None = None
    num_calibration: int | None = None
    draw: Draw | None = None

    def without_draw(self) -> Setting:
        """The same for every draw of calibration samples."""
        return replace(self, draw=None)

    def readout_settings(self, run: ReadoutSettings) -> ReadoutSettings:
        """What the readout is computed with: these choices, and the run's own where they do not matter."""
        names = ("recipe", "top_layers", "temperature", "head_exponent")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        # A K that the layers do not have must not trip a readout that has no use for it.
        return replace(run, **{"top_layers": 1, **chosen})


def factors_of(readout: str, run: ReadoutSettings) -> tuple[str, ...]:
    """The factors on which the choices of a readout depend."""
    if readout == "batch_calibration" and run.batch == "test":
        return ()
    return _OF_READOUT[readout]


def product(
    readouts: Iterable[str], values: Values, draws: Callable[[int], Sequence[Draw]], run: ReadoutSettings
) -> list[Setting]:
    """Every combination of the values of the factors that matter, for every readout, in order and once each.

    Args:
        readouts: their names.
        values: of every factor. More layers than a set of layers has are cut to what it has.
        draws: the choices of so many calibration samples.
        run: the run's own choices.
    """
    settings: dict[Setting, None] = {}
    for readout in readouts:
        factors = factors_of(readout, run)
        for combination in itertools.product(*(values[factor] for factor in factors)):
            chosen = dict(zip(factors, combination, strict=True))
            if "top_layers" in chosen:
                chosen["top_layers"] = min(chosen["top_layers"], len(chosen["layers"]))
            of_size = draws(chosen["num_calibration"]) if "num_calibration" in chosen else [None]
            settings |= dict.fromkeys(Setting(readout, draw=draw, **chosen) for draw in of_size)
    return list(settings)
