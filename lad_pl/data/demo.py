"""The embedded demo sets: scenes rendered on the fly, through the same annotation files as any other set."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from PIL import Image

from lad_pl.data.batches import LoadImage
from lad_pl.data.datamodule import MultiImageData
from lad_pl.data.images import resize
from lad_pl.demo.scenes import IMAGE_SIZE
from lad_pl.demo.worlds import WORLDS, load_image
from lad_pl.errors import UserError
from lad_pl.files import asset


class DemoData(MultiImageData):
    """Rendered scenes for the embedded demo models.

    Args:
        num_candidates: N, the number of images per sample: 4, 8 or 12.
        difficulty: random (the other images are any scenes) or adversarial (they differ little from the correct one).
        world: standard (one object, for the model `demo`) or hard (two objects, for the model `demo-hard`).
        batch_size: samples per batch, each with its T permutations (N shifts in ``fit``); auto takes as many as
            ``batch_tokens`` hold. A batch that does not fit into memory is halved.
        options: further arguments of :class:`MultiImageData`.
    """

    def __init__(
        self,
        num_candidates: Literal[4, 8, 12] = 4,
        difficulty: Literal["random", "adversarial"] = "random",
        world: Literal["standard", "hard"] = "standard",
        batch_size: int | Literal["auto"] = 4,
        **options: Any,
    ) -> None:
        folder, name = asset(WORLDS[world].data), f"{num_candidates}_{difficulty}.json"
        super().__init__(
            annotations=str(folder / f"annotations_{name}"),
            validation_annotations=str(folder / f"validation_{name}"),
            batch_size=batch_size,
            **options,
        )
        self.num_images, self.difficulty, self.world = num_candidates, difficulty, world

    def image_loader(self, side: int | None) -> LoadImage:
        """The function that renders one scene, 56 x 56 pixels, RGB, resized to ``side`` pixels square if given."""
        return partial(_load_scene, side=side)

    def image_size(self, name: str) -> tuple[int, int]:
        """Scenes are all of one size, in pixels."""
        return IMAGE_SIZE, IMAGE_SIZE

    def image_digest(self) -> str:
        """Scenes are drawn by their names."""
        return "drawn"

    def digest_of(self, name: str) -> str:
        """Scenes are drawn by their names."""
        return "drawn"

    def chosen(self) -> dict[str, Any]:
        """The options that choose the samples, as plain values."""
        world = {} if self.world == "standard" else {"world": self.world}  # runs made before the hard world go on
        return {"num_candidates": self.num_images, "difficulty": self.difficulty, **world, **super().chosen()}

    def check_images(self) -> None:
        """Scenes are rendered; there are no files to miss."""


def _load_scene(name: str, side: int | None) -> Image.Image:
    try:
        return resize(load_image(name), side)
    except ValueError as error:
        raise UserError(str(error)) from error
