"""The demo's scenes: one object on a coloured ground, 5,760 combinations of six attributes, and their pictures.

A picture is a function of (scene index, jitter seed), so an image file is only a name: `scene-4031-17.png`
is scene 4031 drawn with jitter 17. The drawing uses nothing but +, -, *, / and square roots of float64
(which IEEE 754 rounds the same everywhere), so the pixels are the same on every platform.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lad_pl.demo.world import Combination, Splits, World

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "pattern": ("plain", "striped"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
    "shape": ("circle", "square", "triangle", "star", "cross", "ring"),
    "place": ("centre", "left", "right", "top", "bottom"),
    "background": ("grass", "sand", "snow", "water", "brick", "slate"),
}
SCENE_COUNT = math.prod(len(words) for words in ATTRIBUTES.values())  # 5,760

TEMPLATES = (
    "a {size} {pattern} {colour} {shape} at the {place} on {background}",
    "on {background} at the {place} there is a {pattern} {shape} that is {colour} and {size}",
    "the {colour} {shape} on {background} is {size} and {pattern} and at the {place}",
)


@dataclass(frozen=True)
class Scene(Combination):
    """One combination: a word for each attribute, in the order of `ATTRIBUTES`."""

    ATTRIBUTES: ClassVar = ATTRIBUTES
    TEMPLATES: ClassVar = TEMPLATES

    size: str
    pattern: str
    colour: str
    shape: str
    place: str
    background: str

    @property
    def index(self) -> int:
        """Number of this scene in 0..SCENE_COUNT-1 (mixed radix, the last attribute fastest)."""
        index = 0
        for word, words in zip(self.words, ATTRIBUTES.values(), strict=True):
            index = index * len(words) + words.index(word)
        return index

    @classmethod
    def from_index(cls, index: int) -> Scene:
        """The scene with this number; the inverse of `index`."""
        if not 0 <= index < SCENE_COUNT:
            raise ValueError(f"scene index {index} is outside 0..{SCENE_COUNT - 1}")
        chosen = []
        for words in reversed(ATTRIBUTES.values()):
            index, digit = divmod(index, len(words))
            chosen.append(words[digit])
        return cls(*reversed(chosen))


# --- Alterations


def altered(scene: Scene, count: int, generator: random.Random) -> Scene:
    """`scene` with `count` of its attributes changed."""
    words = dict(vars(scene))
    for attribute in generator.sample(list(ATTRIBUTES), count):
        words[attribute] = generator.choice([word for word in ATTRIBUTES[attribute] if word != words[attribute]])
    return Scene(**words)


def alterations(scene: Scene) -> list[Scene]:
    """The 23 scenes that differ from `scene` in exactly one attribute."""
    return [
        replace(scene, **{attribute: word})
        for attribute, words in ATTRIBUTES.items()
        for word in words
        if word != getattr(scene, attribute)
    ]


def adversarial_distractors(
    target: Scene, count: int, allowed: frozenset[int], generator: random.Random
) -> list[Scene]:
    """`count` distinct scenes that, like the target, differ from a hidden centre scene in one attribute.

    The centre is drawn among the target's alterations. Every scene has equally many alterations, so this is
    the same as drawing the centre first, altering it count + 1 times and taking any of these as the target.
    """
    centre = generator.choice(alterations(target))
    others = [scene for scene in alterations(centre) if scene != target and scene.index in allowed]
    return generator.sample(others, count)


# --- Drawing

IMAGE_SIZE = 56
"""Pixels along an edge: 4 x 4 patches of 14, merged 2 x 2 into 4 visual tokens."""

_COLOURS = {
    "red": (205, 30, 35), "orange": (245, 135, 20), "yellow": (248, 226, 40), "green": (30, 140, 55),
    "blue": (35, 70, 215), "purple": (125, 40, 170), "pink": (250, 125, 190), "brown": (105, 62, 28),
}  # fmt: skip
_GROUNDS = {
    "grass": (158, 202, 132), "sand": (224, 206, 162), "snow": (243, 246, 250), "water": (148, 194, 222),
    "brick": (190, 130, 114), "slate": (72, 80, 92),
}  # fmt: skip
_PLACES = {"centre": (28.0, 28.0), "left": (16.5, 28.0), "right": (39.5, 28.0), "top": (28.0, 16.5),
           "bottom": (28.0, 39.5)}  # fmt: skip
_RADII = {"small": 7.5, "large": 13.0}
_STRIPE_PERIOD = 5.0  # pixels

Plane = np.ndarray  # float64 [IMAGE_SIZE, IMAGE_SIZE]


def _furthest_sides(x: Plane, y: Plane, normals: tuple[tuple[float, float], ...], rank: int) -> Plane:
    """The rank-th largest of the distances along the outward normals (0 = a convex polygon's outside)."""
    return np.sort(np.stack([x * nx + y * ny for nx, ny in normals]), axis=0)[-1 - rank]


_TRIANGLE = ((0.0, 1.0), (0.8660254, -0.5), (-0.8660254, -0.5))
_PENTAGON = ((0.0, 1.0), (0.9510565, 0.3090170), (0.5877853, -0.8090170), (-0.5877853, -0.8090170),
             (-0.9510565, 0.3090170))  # fmt: skip

# Signed distance to the outline of a shape of radius 1, negative inside. y points down.
_DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": lambda x, y: np.sqrt(x * x + y * y) - 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.88,
    "triangle": lambda x, y: _furthest_sides(x, y, _TRIANGLE, 0) - 0.58,
    # A pentagram is where at most one of a pentagon's five sides is overstepped.
    "star": lambda x, y: _furthest_sides(x, y, _PENTAGON, 1) - 0.36,
    "cross": lambda x, y: np.minimum(
        np.maximum(np.abs(x) - 1.0, np.abs(y) - 0.34), np.maximum(np.abs(x) - 0.34, np.abs(y) - 1.0)
    ),
    "ring": lambda x, y: np.abs(np.sqrt(x * x + y * y) - 0.74) - 0.26,
}


def render_array(scene: Scene, jitter_seed: int) -> np.ndarray:
    """Draw a scene: uint8 [56, 56, 3]. The jitter seed moves, turns, scales and tints it a little."""
    generator = np.random.Generator(np.random.PCG64([scene.index, jitter_seed]))
    # Only Generator.random is used: its bits are the same in every NumPy since 1.17.
    shift_x, shift_y, scale, turn, phase, slope, *tint = (2.0 * generator.random(12) - 1.0).tolist()
    radius = _RADII[scene.size] * (1.0 + 0.06 * scale)
    centre_x, centre_y = _PLACES[scene.place]
    x, y = turned_coordinates(centre_x, centre_y, 1.5 * shift_x, 1.5 * shift_y, 0.07 * turn)
    picture = draw_ground(scene.background, tint[:3], slope)
    picture = draw_object(picture, (x, y), radius, scene.shape, scene.pattern, scene.colour, tint[3:], phase)
    return as_pixels(picture, generator)


def draw_ground(background: str, tint: list[float], slope: float) -> np.ndarray:
    """An empty picture, float64 [56, 56, 3]: tinted by three numbers in -1..1, lighter at one end (`slope` -1..1)."""
    ground = np.array(_GROUNDS[background]) + 6.0 * np.array(tint)
    picture = np.repeat(ground[None, None, :], IMAGE_SIZE, axis=0)
    picture = picture + slope * np.linspace(-10.0, 10.0, IMAGE_SIZE)[:, None, None]
    return np.repeat(picture, IMAGE_SIZE, axis=1)


def draw_object(
    picture: np.ndarray,
    coordinates: tuple[Plane, Plane],
    radius: float,
    shape: str,
    pattern: str,
    colour: str,
    tint: list[float],
    phase: float,
) -> np.ndarray:
    """The picture, float64 [56, 56, 3], with an object of this radius in pixels around the coordinates' origin."""
    x, y = coordinates
    paint = np.array(_COLOURS[colour]) + 10.0 * np.array(tint)
    if pattern != "plain":
        dark = _stripes(x + y, phase)
        if pattern == "checked":
            dark = np.abs(dark - _stripes(x - y, phase))
        paint = paint * (1.0 - 0.7 * dark)[:, :, None]
    distance = _DISTANCES[shape](x / radius, y / radius) * radius  # pixels
    cover = np.clip(0.5 - distance, 0.0, 1.0)[:, :, None]  # the share of a pixel inside: anti-aliasing
    return picture * (1.0 - cover) + paint * cover


def as_pixels(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A finished picture, float64 [56, 56, 3], with noise, as uint8."""
    picture = picture + 4.0 * (2.0 * generator.random((IMAGE_SIZE, IMAGE_SIZE, 1)) - 1.0)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def turned_coordinates(
    centre_x: float, centre_y: float, shift_x: float, shift_y: float, half_tangent: float
) -> tuple[Plane, Plane]:
    """Pixel coordinates from the object's centre, turned by 2 atan(half_tangent): rational, no sine."""
    pixels = np.arange(IMAGE_SIZE) + 0.5
    x = np.broadcast_to(pixels[None, :] - centre_x - shift_x, (IMAGE_SIZE, IMAGE_SIZE))
    y = np.broadcast_to(pixels[:, None] - centre_y - shift_y, (IMAGE_SIZE, IMAGE_SIZE))
    cosine = (1.0 - half_tangent * half_tangent) / (1.0 + half_tangent * half_tangent)
    sine = 2.0 * half_tangent / (1.0 + half_tangent * half_tangent)
    return x * cosine - y * sine, x * sine + y * cosine


def _stripes(along: Plane, phase: float) -> Plane:
    """1 on a stripe, 0 between, soft edges; `along` is sqrt(2) times the distance across the stripes."""
    turns = along / (1.4142135 * _STRIPE_PERIOD) + phase
    edge = np.abs(turns - np.floor(turns) - 0.5) - 0.25  # in periods; a stripe is half a period wide
    return np.clip(0.5 + edge * _STRIPE_PERIOD, 0.0, 1.0)


STANDARD = World(
    name="standard",
    scene=Scene,
    count=SCENE_COUNT,
    splits=Splits.draw(SCENE_COUNT, seed=20261122),
    template_words=("a", "at", "the", "on", "there", "is", "that", "and"),
    image_prefix="scene",
    render_array=render_array,
    altered=altered,
    adversarial=adversarial_distractors,
    objects=(0, 0, 0, 0, 0, 0),
    data="data/demo",
)
