"""Subsets of the layers whose attention a run has stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lad_pl.errors import UserError

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
