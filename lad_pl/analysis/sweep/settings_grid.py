"""Which settings a sweep tries: the cross product of what is asked for, or the paper's ablations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, get_args

from lad_pl.analysis.sweep.calibration_subsets import Draw, LayerSet, all_layers, draws_of, layer_sets, usual_layer_sets
from lad_pl.errors import UserError
from lad_pl.readouts import ReadoutSettings, Recipe, check_names

COMPONENTS = (
    "vanilla",
    "raw_attention",
    "purified_attention",
    "agd",
    "head_information",
    "head_information_label_free",
    "agd_head",
)
"""Readouts whose comparison tells what each part of the method is good for."""
_USUAL: dict[str, tuple[float, ...]] = {
    "temperature": (0.5, 1, 2, 3, 5, 7, 10, 20),
    "head_exponent": (0, 0.5, 1, 2, 3, 4),
    "top_layers": (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60, 80),
    "num_calibration": (1, 2, 3, 5, 10, 20, 50, 100, 200),
}


_REAL = ("temperature", "head_exponent")


@dataclass(frozen=True)
class Stored:
    """What a run has in store to choose from."""

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
        layers = all_layers(self.layers)
        own = {name: getattr(self.readout, name) for name in ("recipe", "top_layers", "temperature", "head_exponent")}
        return {**own, "layers": layers, "num_calibration": self.num_calibration}


@dataclass(frozen=True)
class Plan:
    """The settings, and how to look at them."""

    settings: tuple[Setting, ...]
    varied: dict[str, tuple[Any, ...]]
    """The factors of which more than one value is tried, with these."""
    reference: dict[str, Any]
    """The value of every factor at which it is held while another is looked at: the run's own, where it is tried."""

    def is_reference(self, setting: Setting, but: str | None = None) -> bool:
        """Whether all factors of a setting, ``but`` one, have their reference values."""
        return all(self._is_held(setting, factor) for factor in FACTORS if factor != but)

    def _is_held(self, setting: Setting, factor: str) -> bool:
        value, held = getattr(setting, factor), self.reference[factor]
        if factor == "top_layers" and setting.layers is not None:
            held = min(held, len(setting.layers))
        return value is None or value == held


def make_plan(
    stored: Stored, options: Mapping[str, Any], readouts: Sequence[str] | None, draws: int, seed: int
) -> Plan:
    """The cross product of the values that the options give, or every factor varied by itself where they give none.

    Args:
        stored: what the run has in store.
        options: a value, a list of values or None by factor.
        readouts: their names; if None, those that the run reported, and in ablations those of the components.
        draws: how many choices of calibration samples of every size.
        seed: of the draws.

    Raises:
        UserError: a list is empty, or a value is not to be had from the store.
    """
    given = {factor: _as_list(factor, value) for factor, value in options.items() if value is not None}
    if readouts is not None:
        check_names(readouts)
    _check(given, stored)
    combine = partial(product, draws=cache(partial(draws_of, stored.num_calibration, count=draws, seed=seed)))
    draws_of(stored.num_calibration, 1, draws)  # its check of their number
    if given:
        return _cross_product(stored, given, readouts or stored.readouts, combine)
    return _ablations(stored, readouts or tuple(dict.fromkeys((*COMPONENTS, *stored.readouts))), combine)


def _cross_product(stored: Stored, given: dict[str, tuple[Any, ...]], readouts: Sequence[str], combine: Any) -> Plan:
    own = stored.values()
    values: Values = {factor: given.get(factor, (own[factor],)) for factor in FACTORS}
    varied = {factor: tuple(values[factor]) for factor in FACTORS if len(values[factor]) > 1}
    reference = {factor: own[factor] if own[factor] in values[factor] else values[factor][0] for factor in FACTORS}
    return Plan(tuple(combine(readouts, values, run=stored.readout)), varied, reference)


def _ablations(stored: Stored, readouts: Sequence[str], combine: Any) -> Plan:
    own = stored.values()
    held = {factor: (value,) for factor, value in own.items()}
    tried = {factor: _usual(factor, stored) for factor in FACTORS}
    settings = dict.fromkeys(combine(readouts, held, run=stored.readout))
    for factor, values in tried.items():
        settings |= dict.fromkeys(combine(readouts, {**held, factor: values}, run=stored.readout))
    varied = {
        factor: values
        for factor, values in tried.items()
        if len(values) > 1 and any(getattr(setting, factor) is not None for setting in settings)
    }
    return Plan(tuple(settings), varied, own)


def _usual(factor: str, stored: Stored) -> tuple[Any, ...]:
    own = stored.values()[factor]
    if factor == "recipe":
        return tuple(dict.fromkeys((own, *get_args(Recipe))))
    if factor == "layers":
        return usual_layer_sets(stored.layers)
    most = {"top_layers": len(stored.layers), "num_calibration": stored.num_calibration}.get(factor)
    fitting = {value for value in _USUAL[factor] if most is None or value <= most}
    values = sorted(fitting | {own} | ({most} if most is not None else set()))
    return tuple(map(float, values) if factor in _REAL else values)


def _as_list(factor: str, value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values:
        raise UserError(f"--{factor} is an empty list; give at least one value, or leave it out.")
    return tuple(dict.fromkeys(map(float, values) if factor in _REAL else values))


def _check(given: dict[str, tuple[Any, ...]], stored: Stored) -> None:
    """Check every value, and replace the names of layers by the layers."""
    if "layers" in given:
        given["layers"] = layer_sets(given["layers"], stored.layers)
    for name in ("top_layers", "temperature", "head_exponent"):
        for value in given.get(name, ()):
            ReadoutSettings(**{name: value})
    unknown = [recipe for recipe in given.get("recipe", ()) if recipe not in get_args(Recipe)]
    if unknown:
        raise UserError(f"--recipe is '{unknown[0]}'; choose from {', '.join(get_args(Recipe))}.")
    smallest: LayerSet = min(given.get("layers", (all_layers(stored.layers),)), key=len)
    most = max(given.get("top_layers", (1,)))
    if most > len(smallest):
        raise UserError(
            f"--top_layers is {most}, but --layers {smallest} has only {len(smallest)}; lower it, or leave "
            "--top_layers out: it is then cut to what each set of layers has."
        )


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
