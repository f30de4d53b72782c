"""Encoded pictures from tables, written to files byte for byte."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lad_pl.files import atomic_write


def write_picture(content: bytes, path: Path) -> None:
    """Write an encoded picture as it is, unless the file holds it already."""
    if not path.is_file() or path.read_bytes() != content:
        with atomic_write(path) as partial:
            partial.write_bytes(content)


def is_empty(picture: Any) -> bool:
    """Whether a cell that may hold a picture (a path, bytes, or Hugging Face's ``{bytes, path}``) holds nothing."""
    if isinstance(picture, dict):
        content = picture.get("bytes")
        return not content if content is not None else not picture.get("path")
    return picture is None or (isinstance(picture, bytes | str) and not picture)


def picture_format(content: bytes, decode: bool = False) -> str | None:
    """Pillow's name for the format of an encoded picture, such as JPEG; None if it cannot be read.

    Args:
        content: the encoded picture.
        decode: decode all of it, so that a truncated picture is found; otherwise the header is enough.
    """
    from PIL import Image

    from lad_pl.data.images import FORMATS
    from lad_pl.data.rgb import to_rgb

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if decode:
                to_rgb(image)
            return image.format
    except Exception:  # of a damaged or hostile file Pillow raises nearly anything
        return None
