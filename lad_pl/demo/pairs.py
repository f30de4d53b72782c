"""The hard demo's scenes: two objects side by side, 10,080 combinations, and their pictures.

The two objects differ in pattern, in colour and in shape. So any of the three can be exchanged between them,
which leaves a picture with the very same words: only who has which tells the two pictures apart.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lad_pl.demo.scenes import ATTRIBUTES as OF_ONE
from lad_pl.demo.scenes import IMAGE_SIZE, as_pixels, draw_ground, draw_object, turned_coordinates
from lad_pl.demo.world import Combination, Splits, World

SIDES = ("left", "right")
OF_OBJECTS: dict[str, tuple[str, ...]] = {
    "pattern": ("plain", "striped", "checked"),
    "colour": OF_ONE["colour"],
    "shape": OF_ONE["shape"],
}
"""What an object is said to be."""
ATTRIBUTES = {f"{side}_{kind}": words for side in SIDES for kind, words in OF_OBJECTS.items()}

# The side comes before the words that are about it: a causal decoder reads who has which as it goes.
TEMPLATES = (
    "on the left a {left_pattern} {left_colour} {left_shape} and on the right a {right_pattern} {right_colour} "
    "{right_shape}",
    "on the right is a {right_pattern} {right_shape} that is {right_colour} and on the left is a {left_pattern} "
    "{left_shape} that is {left_colour}",
    "the left {left_shape} is {left_colour} and {left_pattern} and the right {right_shape} is {right_colour} and "
    "{right_pattern}",
)


@dataclass(frozen=True)
class Pair(Combination):
    """Two objects, which differ in every attribute."""

    ATTRIBUTES: ClassVar = ATTRIBUTES
    TEMPLATES: ClassVar = TEMPLATES

    left_pattern: str
    left_colour: str
    left_shape: str
    right_pattern: str
    right_colour: str
    right_shape: str

    def of(self, side: str) -> tuple[str, str, str]:
        """Pattern, colour and shape of the object on one side."""
        return self.words[:3] if side == "left" else self.words[3:]  # type: ignore[return-value]

    @property
    def index(self) -> int:
        """Number of this pair in 0..PAIR_COUNT-1."""
        return _INDEX[self]

    @classmethod
    def from_index(cls, index: int) -> Pair:
        """The pair with this number; the inverse of `index`."""
        if not 0 <= index < PAIR_COUNT:
            raise ValueError(f"scene index {index} is outside 0..{PAIR_COUNT - 1}")
        return _PAIRS[index]


_PAIRS = [
    Pair(*words)
    for words in itertools.product(*ATTRIBUTES.values())
    if all(one != other for one, other in zip(words[:3], words[3:], strict=True))
]
_INDEX = {pair: index for index, pair in enumerate(_PAIRS)}
PAIR_COUNT = len(_PAIRS)  # 10,080


# --- Alterations


def alterations(pair: Pair) -> list[Pair]:
    """The 22 pairs that differ from `pair` in one attribute of one object."""
    changed = (
        replace(pair, **{attribute: word})
        for attribute, words in ATTRIBUTES.items()
        for word in words
        if word != getattr(pair, attribute)
    )
    return [other for other in changed if other in _INDEX]


def exchanges(pair: Pair) -> list[Pair]:
    """The three pairs whose objects have exchanged their patterns, their colours or their shapes."""
    return [_exchanged(pair, kind) for kind in OF_OBJECTS]


def _exchanged(pair: Pair, kind: str) -> Pair:
    left, right = (getattr(pair, f"{side}_{kind}") for side in SIDES)
    return replace(pair, **{f"left_{kind}": right, f"right_{kind}": left})


def altered(pair: Pair, count: int, generator: random.Random) -> Pair:
    """`pair` after `count` changes, each as likely an exchange as an alteration."""
    for _ in range(count):
        pair = generator.choice(exchanges(pair) if generator.random() < 0.5 else alterations(pair))
    return pair


def adversarial_distractors(target: Pair, count: int, allowed: frozenset[int], generator: random.Random) -> list[Pair]:
    """`count` distinct pairs that, like the target, are one change away from a hidden centre.

    Up to three of the count + 1 pairs, and half of them at most, are exchanges of the centre, the others
    alterations. As in `scenes.adversarial_distractors`, to draw the centre from the target is the same as the
    other way round, because every pair has equally many exchanges and alterations: so the target is an exchange as
    often as the share of exchanges among the pairs says.
    """
    of_exchanges = min(len(OF_OBJECTS), (count + 1) // 2)
    is_exchange = generator.random() < of_exchanges / (count + 1)
    centre = generator.choice(exchanges(target) if is_exchange else alterations(target))
    wanted = {True: of_exchanges - is_exchange, False: count - of_exchanges + is_exchange}
    others: list[Pair] = []
    for kind, neighbours in ((True, exchanges(centre)), (False, alterations(centre))):
        left = [pair for pair in neighbours if pair != target and pair.index in allowed]
        others += generator.sample(left, min(wanted[kind], len(left)))
    # A held-out exchange is replaced by an alteration.
    spare = [p for p in alterations(centre) if p != target and p.index in allowed and p not in others]
    others += generator.sample(spare, count - len(others))
    generator.shuffle(others)
    return others


# --- Drawing

_CENTRES = {"left": (IMAGE_SIZE / 4, IMAGE_SIZE / 2), "right": (3 * IMAGE_SIZE / 4, IMAGE_SIZE / 2)}
_RADIUS = 11.5  # pixels


def render_array(pair: Pair, jitter_seed: int) -> np.ndarray:
    """Draw a pair: uint8 [56, 56, 3]. The jitter seed moves, turns, scales and tints its objects a little."""
    generator = np.random.Generator(np.random.PCG64([pair.index, jitter_seed]))
    slope, *tint = (2.0 * generator.random(4) - 1.0).tolist()
    picture = draw_ground("snow", tint, slope)
    for side, (centre_x, centre_y) in _CENTRES.items():
        shift_x, shift_y, scale, turn, phase, *tint = (2.0 * generator.random(8) - 1.0).tolist()
        coordinates = turned_coordinates(centre_x, centre_y, 1.5 * shift_x, 3.0 * shift_y, 0.07 * turn)
        pattern, colour, shape = pair.of(side)
        radius = _RADIUS * (1.0 + 0.06 * scale)
        picture = draw_object(picture, coordinates, radius, shape, pattern, colour, tint, phase)
    return as_pixels(picture, generator)


HARD = World(
    name="hard",
    scene=Pair,
    count=PAIR_COUNT,
    splits=Splits.draw(PAIR_COUNT, seed=20261128),
    template_words=("a", "on", "the", "left", "and", "right", "is", "that"),
    image_prefix="pair",
    render_array=render_array,
    altered=altered,
    adversarial=adversarial_distractors,
    objects=(0, 0, 0, 1, 1, 1),
    data="data/demo-hard",
)
