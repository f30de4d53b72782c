"""The demos' worlds by name."""

from __future__ import annotations

from PIL import Image

from lad_pl.demo.pairs import HARD
from lad_pl.demo.scenes import STANDARD
from lad_pl.demo.world import World

WORLDS: dict[str, World] = {world.name: world for world in (STANDARD, HARD)}


def load_image(name: str) -> Image.Image:
    """Draw the image that `name` stands for in the world that has it; ValueError if none does."""
    world = HARD if name.startswith(HARD.image_prefix) else STANDARD
    return world.load_image(name)
