"""What a demo's world of scenes has to say about itself: its combinations of words, splits, image names and pictures.

The sets, the training and the data module work on any such world: `scenes.STANDARD` or `pairs.HARD`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image


class Combination:
    """A scene as a combination of words, one for each attribute. Subclasses are frozen dataclasses of these words."""

    ATTRIBUTES: ClassVar[dict[str, tuple[str, ...]]]
    """Attribute (the name of the field) -> its words."""
    TEMPLATES: ClassVar[tuple[str, ...]]
    """Captions, with the attributes as fields."""

    @property
    def words(self) -> tuple[str, ...]:
        """The attribute words, in the order of `ATTRIBUTES`, which is that of the fields."""
        return tuple(vars(self).values())

    @property
    def index(self) -> int:
        """Number of this scene among all scenes of its world, from 0."""
        raise NotImplementedError

    @classmethod
    def from_index(cls, index: int) -> Self:
        """The scene with this number; the inverse of `index`. ValueError if there is none."""
        raise NotImplementedError

    def caption(self, template: int) -> str:
        """The caption that names all attributes, in the words of `TEMPLATES[template]`."""
        return self.TEMPLATES[template].format(**vars(self))

    def differing_attributes(self, other: Self) -> list[str]:
        """The attributes in which two scenes have different words."""
        return [attribute for attribute in self.ATTRIBUTES if vars(self)[attribute] != vars(other)[attribute]]


@dataclass(frozen=True)
class Splits:
    """Disjoint scene indices, together all of a world."""

    training: tuple[int, ...]
    validation: tuple[int, ...]
    """Combinations never trained on: the targets of the validation sets, on which the recipe was chosen."""
    test: tuple[int, ...]
    """Combinations never trained on: the targets of the test sets."""

    @classmethod
    def draw(cls, count: int, seed: int) -> Splits:
        """85 % of `count` scenes for training, the others in equal parts for validation and test."""
        order = list(range(count))
        random.Random(seed).shuffle(order)
        held_out = count * 15 // 100
        parts = order[held_out:], order[held_out // 2 : held_out], order[: held_out // 2]
        return cls(*(tuple(sorted(part)) for part in parts))


@dataclass(frozen=True)
class World:
    """All that is particular to a kind of scenes."""

    name: str
    scene: type[Combination]
    count: int
    """Number of scenes."""
    splits: Splits
    template_words: tuple[str, ...]
    """The words of the captions' templates, in the order of their token ids."""
    image_prefix: str
    """Image names are `PREFIX-INDEX-JITTER.png`."""
    render_array: Callable[[Any, int], np.ndarray]
    """(scene, jitter seed) -> picture, uint8 [56, 56, 3]."""
    altered: Callable[[Any, int, random.Random], Any]
    """(scene, number of changes, generator) -> a scene that differs a little."""
    adversarial: Callable[[Any, int, frozenset[int], random.Random], list[Any]]
    """(target, count, allowed indices, generator) -> distinct scenes hard to tell from the target."""
    objects: tuple[int, ...]
    """Which object each attribute is about: 0 or 1."""
    data: str
    """Folder of the annotation files, relative to the project."""

    @cached_property
    def training(self) -> frozenset[int]:
        """The training scenes' indices."""
        return frozenset(self.splits.training)

    def render_name(self, scene: int, jitter: int) -> str:
        """The image name of a scene index and a jitter seed, such as `scene-4031-17.png`."""
        return f"{self.image_prefix}-{scene}-{jitter}.png"

    @cached_property
    def _name(self) -> re.Pattern[str]:
        return re.compile(rf"{self.image_prefix}-(0|[1-9]\d{{0,4}})-(0|[1-9]\d{{0,8}})\.png", re.ASCII)

    def parse_name(self, name: str) -> tuple[int, int]:
        """(scene index, jitter seed) of an image name; ValueError if it is none."""
        match = self._name.fullmatch(name)
        if match is None or int(match[1]) >= self.count:
            raise ValueError(
                f"{name!r} is no demo image: expected {self.image_prefix}-INDEX-JITTER.png "
                f"with INDEX in 0..{self.count - 1}"
            )
        return int(match[1]), int(match[2])

    def load_image(self, name: str) -> Image.Image:
        """Draw the image that `name` stands for (RGB, 56x56); ValueError if it is no image name of this world."""
        scene, jitter = self.parse_name(name)
        return self.render(self.scene.from_index(scene), jitter)

    def render(self, scene: Any, jitter_seed: int) -> Image.Image:
        """Draw a scene: RGB, 56x56 pixels. The jitter seed moves, turns, scales and tints it a little."""
        return Image.fromarray(self.render_array(scene, jitter_seed))
