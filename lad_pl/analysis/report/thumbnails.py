"""Small pictures of a run's images, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image
from rich.progress import track

from lad_pl.data.images import open_image
from lad_pl.demo.scenes import load_image
from lad_pl.errors import UserError

SIDE = 160
"""Pixels along the longer edge."""


def thumbnails(names: Iterable[str], folder: Path | None) -> dict[str, str | None]:
    """A data URI for every name, None for an image that cannot be shown.

    Args:
        names: of images, relative to the folder.
        folder: the image folder; scenes of the demo are rendered where it has no such file.
    """
    names = list(dict.fromkeys(names))
    return {name: _thumbnail(name, folder) for name in track(names, "Thumbnails", transient=True)}


def _thumbnail(name: str, folder: Path | None) -> str | None:
    def from_file() -> Image.Image:
        path = Path(name) if folder is None else folder / name
        if not path.is_file():  # nor a pipe, which would wait for ever
            raise UserError(f"image file {path} does not exist")
        return open_image(path)  # as the model sees it: without its EXIF orientation

    sources: tuple[Callable[[], Image.Image], ...] = (from_file, lambda: load_image(name))
    for source in sources:
        try:
            return _data_uri(source())
        except (UserError, OSError, ValueError):
            continue
    return None


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
