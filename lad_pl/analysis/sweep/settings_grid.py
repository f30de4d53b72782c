"""Which settings a sweep tries: the cross product of the given values, or the paper's ablations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, get_args

from lad_pl.analysis.sweep.calibration_subsets import (
    CalibrationSubset,
    LayerSet,
    all_layers,
    draw_subsets,
    layer_sets,
    usual_layer_sets,
)
from lad_pl.errors import UserError
from lad_pl.readouts import FACTORS, READOUTS, HeadScore, ReadoutSettings, Recipe, check_names

COMPONENTS = (
    "vanilla",
    "raw_attention",
    "purified_attention",
    "agd",
    "head_information",
    "head_information_label_free",
    "agd_head",
)
"""Readouts whose comparison shows what each part of the method contributes."""
_USUAL: dict[str, tuple[float, ...]] = {
    "temperature": (0.5, 1, 2, 3, 5, 7, 10, 20),
    "head_exponent": (0, 0.5, 1, 2, 3, 4),
    "top_heads": (1, 2, 4, 8, 16, 32),
    "top_layers": (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60, 80),
    "num_calibration": (1, 2, 3, 5, 10, 20, 50, 100, 200),
}
_REAL = ("temperature", "head_exponent")
_SETTINGS = ("recipe", "top_layers", "temperature", "head_exponent", "top_heads", "head_score")
_CHOICES: dict[str, tuple[str, ...]] = {"recipe": get_args(Recipe), "head_score": get_args(HeadScore)}
"""The factors that are fields of ReadoutSettings."""
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
    top_heads: int | None = None
    head_score: HeadScore | None = None
    num_calibration: int | None = None
    subset: CalibrationSubset | None = None

    def without_subset(self) -> Setting:
        """The same for every calibration subset."""
        return replace(self, subset=None)

    def readout_settings(self, run: ReadoutSettings) -> ReadoutSettings:
        """What the readout is computed with: these choices, and the run's own where they do not matter."""
        chosen = {name: getattr(self, name) for name in _SETTINGS if getattr(self, name) is not None}
        # A K that the layers do not have must not fail a readout that has no use for it.
        fitting = run.top_layers if self.layers is None else min(run.top_layers, len(self.layers))
        return replace(run, **{"top_layers": fitting, **chosen})


def factors_of(readout: str, run: ReadoutSettings) -> tuple[str, ...]:
    """The factors on which the choices of a readout depend."""
    if readout == "batch_calibration" and run.batch == "test":  # no calibration sample enters
        return ()
    return READOUTS[readout].depends_on


def product(
    readouts: Iterable[str], values: Values, subsets: Callable[[int], Sequence[CalibrationSubset]], run: ReadoutSettings
) -> list[Setting]:
    """Every combination of the values of the factors that matter, for every readout, in order and once each.

    Args:
        readouts: their names.
        values: of every factor. A K of more layers than a set of layers has is lowered to what it has.
        subsets: the calibration subsets of a size.
        run: the run's own choices.
    """
    settings: dict[Setting, None] = {}
    for readout in readouts:
        factors = factors_of(readout, run)
        for combination in itertools.product(*(values[factor] for factor in factors)):
            chosen = dict(zip(factors, combination, strict=True))
            if "top_layers" in chosen and "layers" in chosen:
                chosen["top_layers"] = min(chosen["top_layers"], len(chosen["layers"]))
            of_size = subsets(chosen["num_calibration"]) if "num_calibration" in chosen else [None]
            settings |= dict.fromkeys(Setting(readout, subset=subset, **chosen) for subset in of_size)
    return list(settings)


@dataclass(frozen=True)
class Stored:
    """What a run has stored, and the choices that it was made with."""

    readouts: tuple[str, ...]
    """Those that the run reported."""
    layers: tuple[int, ...]
    """The captured layers, as the model counts them."""
    num_calibration: int
    """Calibration samples."""
    readout: ReadoutSettings
    """The run's own choices."""

    def values(self) -> dict[str, Any]:
        """The run's own value of every factor."""
        own = {name: getattr(self.readout, name) for name in _SETTINGS}
        return {**own, "layers": all_layers(self.layers), "num_calibration": self.num_calibration}


@dataclass(frozen=True)
class SettingsGrid:
    """The settings to try, and how to look at them."""

    settings: tuple[Setting, ...]
    varied: dict[str, tuple[Any, ...]]
    """The factors of which more than one value is tried, with these."""
    reference: dict[str, Any]
    """The value of every factor at which it is held while another is varied: the run's own, where it is tried."""

    def is_reference(self, setting: Setting, but: str | None = None) -> bool:
        """Whether all factors of a setting, ``but`` one, have their reference values."""
        return all(self._is_held(setting, factor) for factor in FACTORS if factor != but)

    def _is_held(self, setting: Setting, factor: str) -> bool:
        value, held = getattr(setting, factor), self.reference[factor]
        if factor == "top_layers" and setting.layers is not None:
            held = min(held, len(setting.layers))
        return value is None or value == held


def make_grid(
    stored: Stored, options: Mapping[str, Any], readouts: Sequence[str] | None, draws: int, seed: int
) -> SettingsGrid:
    """The cross product of the values that the options give, or every factor varied by itself where they give none.

    Args:
        stored: what the run has stored.
        options: a value, a list of values or None by factor.
        readouts: their names; if None, those that the run reported, and in ablations those of the components.
        draws: how many calibration subsets of every size.
        seed: of the subsets.

    Raises:
        UserError: a list is empty, or a value cannot be computed from the store.
    """
    given = {factor: _as_list(factor, value) for factor, value in options.items() if value is not None}
    if readouts is not None:
        check_names(readouts)
    _check(given, stored)
    subsets = cache(partial(draw_subsets, stored.num_calibration, count=draws, seed=seed))
    subsets(1)  # checks the number of draws
    combine = partial(product, subsets=subsets, run=stored.readout)
    if given:
        return _cross_product(stored, given, readouts or stored.readouts, combine)
    return _ablations(stored, readouts or tuple(dict.fromkeys((*COMPONENTS, *stored.readouts))), combine)


def _as_list(factor: str, value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values:
        raise UserError(f"--{factor} is an empty list; give at least one value, or leave it out.")
    return tuple(dict.fromkeys(map(float, values) if factor in _REAL else values))


def _check(given: dict[str, tuple[Any, ...]], stored: Stored) -> None:
    """Check every value, and replace the names of layers by the layers."""
    if "layers" in given:
        given["layers"] = layer_sets(given["layers"], stored.layers)
    for name in ("top_layers", "temperature", "head_exponent", "top_heads"):
        for value in given.get(name, ()):
            ReadoutSettings(**{name: value})
    for name, choices in _CHOICES.items():
        unknown = [value for value in given.get(name, ()) if value not in choices]
        if unknown:
            raise UserError(f"--{name} is '{unknown[0]}'; choose from {', '.join(choices)}.")
    smallest: LayerSet = min(given.get("layers", (all_layers(stored.layers),)), key=len)
    most = max(given.get("top_layers", (1,)))
    if most > len(smallest):
        raise UserError(
            f"--top_layers is {most}, but --layers {smallest} has only {len(smallest)}; lower it, or leave "
            "--top_layers out: it is then lowered to what each set of layers has."
        )


def _cross_product(
    stored: Stored, given: dict[str, tuple[Any, ...]], readouts: Sequence[str], combine: Any
) -> SettingsGrid:
    own = stored.values()
    values: Values = {factor: given.get(factor, (own[factor],)) for factor in FACTORS}
    varied: dict[str, Any] = {factor: tuple(values[factor]) for factor in FACTORS if len(values[factor]) > 1}
    reference: dict[str, Any] = {
        factor: own[factor] if own[factor] in values[factor] else values[factor][0] for factor in FACTORS
    }
    return SettingsGrid(tuple(combine(readouts, values)), varied, reference)


def _ablations(stored: Stored, readouts: Sequence[str], combine: Any) -> SettingsGrid:
    own = stored.values()
    held = {factor: (value,) for factor, value in own.items()}
    tried = {factor: _usual(factor, stored) for factor in FACTORS}
    settings = dict.fromkeys(combine(readouts, held))
    for factor, values in tried.items():
        settings |= dict.fromkeys(combine(readouts, {**held, factor: values}))
    varied: dict[str, Any] = {
        factor: values
        for factor, values in tried.items()
        if len(values) > 1 and any(getattr(setting, factor) is not None for setting in settings)
    }
    return SettingsGrid(tuple(settings), varied, own)


def _usual(factor: str, stored: Stored) -> tuple[Any, ...]:
    own = stored.values()[factor]
    if factor in _CHOICES:
        return tuple(dict.fromkeys((own, *_CHOICES[factor])))
    if factor == "layers":
        return usual_layer_sets(stored.layers)
    most = {"top_layers": len(stored.layers), "num_calibration": stored.num_calibration}.get(factor)
    fitting = {value for value in _USUAL[factor] if most is None or value <= most}
    values = sorted(fitting | {own} | ({most} if most is not None else set()))
    return tuple(map(float, values) if factor in _REAL else values)
