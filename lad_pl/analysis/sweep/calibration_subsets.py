"""Subsets of the stored calibration samples and of the captured layers, and the calibrations made on them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lad_pl.calibrate import calibrate
from lad_pl.errors import UserError, check_at_least
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.readouts import ReadoutSettings
from lad_pl.types import Calibration

ALL, EACH = "all", "each"
"""Names of every layer together, and of every layer by itself."""
_LAYERS_HELP = (
    "write one layer (21), a range (21-35), several joined by + (21+23), all, or each for every layer by itself"
)


@dataclass(frozen=True)
class CalibrationSubset:
    """Some of the calibration samples."""

    number: int
    """Counts the subsets of the same size from 0."""
    samples: tuple[int, ...]
    """Their indices among the stored calibration samples, from 0."""


def draw_subsets(num_stored: int, size: int, count: int, seed: int = 0) -> tuple[CalibrationSubset, ...]:
    """Different subsets of ``size`` out of ``num_stored`` samples: ``count`` seeded ones, or all if there are fewer.

    >>> [subset.samples for subset in draw_subsets(3, 2, 10)]
    [(0, 1), (0, 2), (1, 2)]

    Raises:
        UserError: there are not so many samples, or none are asked for.
    """
    check_at_least(1, **{"--num_calibration": size, "--draws": count})
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
    return tuple(CalibrationSubset(number, samples) for number, samples in enumerate(chosen))


@dataclass(frozen=True)
class LayerSet:
    """Some of the stored layers."""

    name: str
    """all, 21, 21-28, 21+23."""
    indices: tuple[int, ...]
    """Into the stored layers, from 0, in their order."""

    def __len__(self) -> int:
        return len(self.indices)

    def __str__(self) -> str:
        return self.name


def all_layers(stored: Sequence[int]) -> LayerSet:
    """Every stored layer."""
    return LayerSet(ALL, tuple(range(len(stored))))


def layer_sets(choices: Iterable[str | int], stored: Sequence[int]) -> tuple[LayerSet, ...]:
    """The sets of layers that the choices name, without repetition.

    Args:
        choices: one layer, as the model counts them, a range (21-35), several joined by + (21+23), all or each.
        stored: the stored layers, in their order.

    >>> [str(layers) for layers in layer_sets(["all", "each", "21-22"], [21, 22, 23])]
    ['all', '21', '22', '23', '21-22']

    Raises:
        UserError: a choice cannot be read, or holds a layer that is not stored.
    """
    found: dict[tuple[int, ...], LayerSet] = {}
    for choice in choices:
        for name in map(str, stored) if choice == EACH else [str(choice)]:
            layers = _layer_set(name, stored)
            found.setdefault(layers.indices, layers)
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
    return LayerSet(name, tuple(index for index, layer in enumerate(stored) if layer in wanted))


def _range(part: str, name: str) -> range:
    first, dash, last = (piece.strip() for piece in part.partition("-"))
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UserError(f"--layers '{name}' cannot be read; {_LAYERS_HELP}.")
    layers = range(int(first), int(last or first) + 1)
    if not layers:
        raise UserError(f"--layers '{name}' is no layer; a range runs from low to high.")
    return layers


def _is_range(layers: Sequence[int]) -> bool:
    return len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1))


def _listed(stored: Sequence[int]) -> str:
    return f"{stored[0]}-{stored[-1]}" if _is_range(stored) else ", ".join(map(str, stored))


class Calibrations:
    """Calibrations on any of the stored samples and layers, each made once.

    Args:
        records: every calibration sample under its N cyclic shifts.
        settings: the run's own choices.
    """

    def __init__(self, records: EvidenceRecords, settings: ReadoutSettings = ReadoutSettings()) -> None:  # noqa: B008
        evidence = records.evidence
        if settings.rows == "last":  # there is no use for the captions' rows
            evidence = replace(evidence, caption_attention=None)
        self._records, self._settings = replace(records, evidence=evidence), settings
        self._sample_indices = records.sample_index.unique().tolist()
        self._rows = {
            index: (records.sample_index == index).nonzero().flatten().tolist() for index in self._sample_indices
        }
        self._made: dict[tuple[tuple[int, ...], tuple[int, ...]], Calibration] = {}

    def __len__(self) -> int:
        """How many samples are stored."""
        return len(self._sample_indices)

    @property
    def num_layers(self) -> int:
        """L."""
        return self._records.evidence.attention.shape[1]

    def names(self, samples: Sequence[int]) -> list[str]:
        """Ids of the samples with these indices."""
        return [self._records.ids[self._rows[self._sample_indices[sample]][0]] for sample in samples]

    def of(self, subset: CalibrationSubset | None, layers: LayerSet | None, heads: bool = False) -> Calibration:
        """The calibration on some samples and layers.

        Args:
            subset: the samples; all if None.
            layers: the layers; all if None.
            heads: whether what concerns all heads together is to be that of these layers alone, as it is when only they
                are captured: whether heads know the answer at all, and the vote on the targets without labels. It is
                that of all layers otherwise, which is faster.
        """
        samples = tuple(range(len(self))) if subset is None else subset.samples
        every_layer = tuple(range(self.num_layers))
        chosen = every_layer if layers is None else layers.indices
        if chosen == every_layer or heads:
            return self._calibrated(samples, chosen)
        return _on_layers(self._calibrated(samples, every_layer), chosen)

    def _calibrated(self, samples: tuple[int, ...], layers: tuple[int, ...]) -> Calibration:
        if (samples, layers) not in self._made:
            rows = [row for sample in samples for row in self._rows[self._sample_indices[sample]]]
            records = self._records
            evidence = records.evidence[rows].of_layers(list(layers))
            self._made[samples, layers] = calibrate(
                evidence,
                records.targets[rows],
                records.permutations[rows],
                records.sample_index[rows],
                self._settings,
            )
        return self._made[samples, layers]


def _on_layers(calibration: Calibration, layers: tuple[int, ...]) -> Calibration:
    chosen = list(layers)
    values: dict[str, Any] = {name: getattr(calibration, name)[chosen] for name in _BY_LAYER}
    for name in ("caption", "both"):
        of_rows: Calibration | None = getattr(calibration, name)
        values[name] = of_rows and _on_layers(of_rows, layers)
    return replace(calibration, **values)


_BY_LAYER = (
    *("attention_prior", "log_attention_mean", "head_information", "head_information_label_free"),
    *("head_qr", "head_core", "head_qr_label_free", "head_core_label_free"),
)
"""The fields of a calibration whose first axis is the layers."""
