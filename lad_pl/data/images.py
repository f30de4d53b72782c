"""Opening, resizing and identifying image files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from PIL import Image, ImageOps, features

from lad_pl.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
"""Formats that are decoded: photographs, nothing that needs another program to run, such as PostScript."""

_END = 16 * 1024

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""Pillow's exceptions for files that are no image, truncated, broken or hostile."""


def load_photo(name: str, folder: Path, side: int | None) -> Image.Image:
    """Decode and resize one image of a folder; a plain function, so that data workers carry nothing else.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    return resize(open_image(folder / name), side)


def file_digest(path: Path) -> str:
    """A digest of a file's size and of its first and last 16 KiB, which is cheap for many large files.

    An image rotated by its EXIF entry alone differs near its beginning.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        for start in (0, max(0, size - _END)):
            file.seek(start)
            digest.update(file.read(_END))
    return digest.hexdigest()[:16]


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's header; (0, 0) if it cannot be read, which decoding will report."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except UNREADABLE:
        return 0, 0


def open_image(path: Path, upright: bool = False) -> Image.Image:
    """Decode a file completely, as RGB.

    Args:
        path: the file.
        upright: turn it as its EXIF orientation says, as people see it; the published code does not.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"image file {path} does not exist") from error
    except UNREADABLE as error:
        raise UserError(f"image file {path} cannot be read ({error})") from error


def resize(image: Image.Image, side: int | None) -> Image.Image:
    """Square and bicubic, as the published code does; unchanged if ``side`` is None."""
    return image if side is None else image.resize((side, side), Image.Resampling.BICUBIC)
