"""Which of the stored calibration samples a setting is calibrated on, and the calibrations that come of it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lad_pl.calibrate import calibrate
from lad_pl.errors import UserError
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.types import Calibration, Evidence


@dataclass(frozen=True)
class Draw:
    """Some of the calibration samples."""

    number: int
    """Counts the draws of the same size from 0."""
    samples: tuple[int, ...]
    """Their places among the stored calibration samples, from 0."""


def draws_of(num_stored: int, size: int, count: int, seed: int = 0) -> tuple[Draw, ...]:
    """Different choices of ``size`` out of ``num_stored`` samples: ``count`` seeded ones, or all if there are fewer.

    >>> [draw.samples for draw in draws_of(3, 2, 10)]
    [(0, 1), (0, 2), (1, 2)]

    Raises:
        UserError: there are not so many samples, or none are asked for.
    """
    if size < 1 or count < 1:
        what = f"--num_calibration is {size}" if size < 1 else f"--draws is {count}"
        raise UserError(f"{what}; it must be at least 1.")
    if size > num_stored:
        raise UserError(
            f"--num_calibration is {size}, but the run stores {num_stored} calibration samples; calibrate on more with "
            f"fit --data.num_calibration {size}, test again, and sweep that run."
        )
    chosen: dict[tuple[int, ...], None] = {}
    if math.comb(num_stored, size) <= count:
        chosen = dict.fromkeys(itertools.combinations(range(num_stored), size))
    generator = random.Random(seed)
    while len(chosen) < min(count, math.comb(num_stored, size)):
        chosen[tuple(sorted(generator.sample(range(num_stored), size)))] = None
    return tuple(Draw(number, samples) for number, samples in enumerate(chosen))


class Calibrations:
    """Calibrations on any of the stored samples and layers, each made once.

    Args:
        passes: every calibration sample under its N cyclic shifts.
    """

    def __init__(self, passes: EvidenceRecords) -> None:
        self._passes = passes
        self._sample_indices = passes.sample_index.unique().tolist()
        self._rows = {
            index: (passes.sample_index == index).nonzero().flatten().tolist() for index in self._sample_indices
        }
        self._made: dict[tuple[tuple[int, ...], tuple[int, ...]], Calibration] = {}

    def __len__(self) -> int:
        """How many samples are stored."""
        return len(self._sample_indices)

    @property
    def num_layers(self) -> int:
        """L."""
        return self._passes.evidence.attention.shape[1]

    def names(self, samples: Sequence[int]) -> list[str]:
        """Ids of the samples at these places."""
        return [self._passes.ids[self._rows[self._sample_indices[sample]][0]] for sample in samples]

    def of(self, draw: Draw | None, layers: LayerSet | None, label_free: bool = False) -> Calibration:
        """The calibration on some samples and layers.

        Args:
            draw: the samples; all if None.
            layers: the layers; all if None.
            label_free: whether the information without labels is to be that of these layers alone, as it is when only
                they are captured: there the heads of all layers vote on the targets together. It is that of all layers
                otherwise, which is faster.
        """
        samples = tuple(range(len(self))) if draw is None else draw.samples
        everywhere = tuple(range(self.num_layers))
        places = everywhere if layers is None else layers.places
        if places == everywhere or label_free:
            return self._calibrated(samples, places)
        return _on_layers(self._calibrated(samples, everywhere), places)

    def _calibrated(self, samples: tuple[int, ...], places: tuple[int, ...]) -> Calibration:
        if (samples, places) not in self._made:
            rows = [row for sample in samples for row in self._rows[self._sample_indices[sample]]]
            passes = self._passes
            evidence = Evidence(
                passes.evidence.log_probs[rows],
                passes.evidence.attention[rows][:, places],
                passes.evidence.layer_attention[rows][:, places],
            )
            self._made[samples, places] = calibrate(
                evidence, passes.targets[rows], passes.permutations[rows], passes.sample_index[rows]
            )
        return self._made[samples, places]


def _on_layers(calibration: Calibration, places: tuple[int, ...]) -> Calibration:
    chosen = list(places)
    return replace(
        calibration,
        attention_prior=calibration.attention_prior[chosen],
        log_attention_mean=calibration.log_attention_mean[chosen],
        head_information=calibration.head_information[chosen],
        head_information_label_free=calibration.head_information_label_free[chosen],
    )


EACH = "each"


ALL = "all"


_HOW = "write one layer (21), a range (21-35), several joined by + (21+23), all, or each for every layer by itself"


@dataclass(frozen=True)
class LayerSet:
    """Some of the stored layers."""

    name: str
    """As it is shown: all, 21, 21-28, 21+23."""
    places: tuple[int, ...]
    """Where they stand among the stored layers, from 0, in their order."""

    def __len__(self) -> int:
        return len(self.places)

    def __str__(self) -> str:
        return self.name


def all_layers(stored: Sequence[int]) -> LayerSet:
    """Every stored layer."""
    return LayerSet(ALL, tuple(range(len(stored))))


def layer_sets(choices: Iterable[str | int], stored: Sequence[int]) -> tuple[LayerSet, ...]:
    """The sets that the choices name, without repetition.

    Args:
        choices: names of layers, as the model counts them.
        stored: the layers that are there, in their order.

    >>> [str(layers) for layers in layer_sets(["all", "each", "21-22"], [21, 22, 23])]
    ['all', '21', '22', '23', '21-22']

    Raises:
        UserError: a choice cannot be read, or holds a layer that is not stored.
    """
    found: dict[tuple[int, ...], LayerSet] = {}
    for choice in choices:
        for name in map(str, stored) if choice == EACH else [str(choice)]:
            layers = _layer_set(name, stored)
            found.setdefault(layers.places, layers)
    return tuple(found.values())


def usual_layer_sets(stored: Sequence[int]) -> tuple[LayerSet, ...]:
    """Every layer by itself, the lower and the upper half, and all."""
    half = len(stored) // 2
    halves = [f"{part[0]}-{part[-1]}" for part in (stored[:half], stored[half:]) if _is_range(part)]
    return layer_sets([EACH, *halves, ALL], stored)


def _layer_set(name: str, stored: Sequence[int]) -> LayerSet:
    if name == ALL:
        return all_layers(stored)
    wanted = {layer for part in name.split("+") for layer in _range(part, name)}
    missing = sorted(wanted - set(stored))
    if missing:
        raise UserError(f"Layer {missing[0]} of --layers '{name}' is not stored; the run has {_listed(stored)}.")
    return LayerSet(name, tuple(place for place, layer in enumerate(stored) if layer in wanted))


def _range(part: str, name: str) -> range:
    first, dash, last = (piece.strip() for piece in part.partition("-"))
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UserError(f"--layers '{name}' cannot be read; {_HOW}.")
    layers = range(int(first), int(last or first) + 1)
    if not layers:
        raise UserError(f"--layers '{name}' is no layer; a range runs from low to high.")
    return layers


def _is_range(layers: Sequence[int]) -> bool:
    return len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1))


def _listed(stored: Sequence[int]) -> str:
    return f"{stored[0]}-{stored[-1]}" if _is_range(stored) else ", ".join(map(str, stored))
