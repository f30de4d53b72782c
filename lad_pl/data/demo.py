"""The embedded demo set: scenes rendered on the fly, through the same annotation files as any other set."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from PIL import Image

from lad_pl.assets import asset
from lad_pl.data.dataset import LoadImage
from lad_pl.data.images import resize
from lad_pl.data.module import MultiImageData
from lad_pl.demo.scenes import load_image
from lad_pl.errors import UserError


class DemoData(MultiImageData):
    """Rendered scenes for the embedded demo model.

    Args:
        num_candidates: N, the number of images per sample: 4, 8 or 12.
        difficulty: random (the other images are any scenes) or adversarial (they differ from the right one in little).
        num_calibration: how many samples to calibrate on.
        calibration_offset: place of the first calibration sample in its file.
        num_test: how many of the remaining samples to test or predict on; all 300 if unset.
        allow_calibration_in_test: let calibration samples be test samples too.
        num_permutations: T, the orders in which every test sample is shown: the given one, then random ones.
        permutation_seed: seed of the random orders.
        batch_size: samples per batch; their T permutations (N shifts in ``fit``) travel with them.
        num_workers: processes that render and encode ahead of the model; 0 does it in the main process.
    """

    def __init__(
        self,
        num_candidates: Literal[4, 8, 12] = 4,
        difficulty: Literal["random", "adversarial"] = "random",
        num_calibration: int = 5,
        calibration_offset: int = 0,
        num_test: int | None = None,
        allow_calibration_in_test: bool = False,
        num_permutations: int = 5,
        permutation_seed: int = 42,
        batch_size: int = 4,
        num_workers: int = 0,
    ) -> None:
        folder = asset("data/demo")
        options: dict[str, Any] = {
            "num_calibration": num_calibration,
            "calibration_offset": calibration_offset,
            "num_test": num_test,
            "allow_calibration_in_test": allow_calibration_in_test,
            "num_permutations": num_permutations,
            "permutation_seed": permutation_seed,
            "batch_size": batch_size,
            "num_workers": num_workers,
        }
        super().__init__(
            str(folder / f"annotations_{num_candidates}_{difficulty}.json"),
            validation_annotations=str(folder / f"validation_{num_candidates}_{difficulty}.json"),
            **options,
        )

    def image_loader(self, side: int | None) -> LoadImage:
        """The function that renders one scene, 56 x 56 pixels, RGB, resized to ``side`` pixels square if given."""
        return partial(_load_scene, side=side)

    def check_images(self) -> None:
        """Scenes are rendered; there are no files to miss."""


def _load_scene(name: str, side: int | None) -> Image.Image:
    try:
        return resize(load_image(name), side)
    except ValueError as error:
        raise UserError(str(error)) from error
