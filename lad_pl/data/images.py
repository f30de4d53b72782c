"""Opening, checking, resizing and identifying image files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError, features

from lad_pl.data.rgb import is_deep, to_rgb
from lad_pl.errors import UserError, first_line

try:
    import pillow_heif
except ImportError:  # an optional extra
    _HEIF = False
else:
    pillow_heif.register_heif_opener()
    _HEIF = True

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"),
    *(("AVIF",) if features.check("avif") else ()),
    *(("HEIF",) if _HEIF else ()),
)
"""Formats that are decoded: photographs, nothing that needs another program to run, such as PostScript."""
HOW_TO_READ = {
    "HEIC": "to read them, pip install pillow-heif",
    "AVIF": "to read them, install a Pillow with AVIF (pip install --upgrade pillow)",
}
"""What to do about formats that an optional library reads."""

NAMED = 10
"""How many faulty files an error names."""

_END = 16 * 1024
_SEARCHED = 64 * 1024
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}


def load_photo(name: str, folder: Path, side: int | None) -> Image.Image:
    """Decode and resize one image of a folder; a plain function, so that data workers carry nothing else.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    return resize(open_image(folder / name), side)


def file_digest(path: Path) -> str:
    """A digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def ends_digest(path: Path) -> str:
    """A digest of a file's size and of its first and last 16 KiB, by which earlier versions knew images."""
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
    except Exception:  # see `open_image`
        return 0, 0


def open_image(path: Path, as_seen: bool = False) -> Image.Image:
    """Decode a file completely, as RGB; of several frames or pages the first.

    Args:
        path: the file.
        as_seen: upright and with what is transparent on white, as people see it; the published code does neither.

    Raises:
        UserError: the file is missing, truncated, no image, or deep gray whose range is unknown.
    """
    fault = file_fault(path)
    if fault is not None:
        raise UserError(f"image file {path} {fault}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_rgb(image, as_seen)
    except Exception as error:  # of a damaged or hostile file Pillow raises nearly anything
        raise UserError(f"image file {path} {_reason(path, error)}") from error


def resize(image: Image.Image, side: int | None) -> Image.Image:
    """Square and bicubic, as the published code does; unchanged if ``side`` is None."""
    return image if side is None else image.resize((side, side), Image.Resampling.BICUBIC)


# ------------------------------------------------------------------------------------------------ what is wrong with it


def raise_broken(files: Mapping[Path, str], decode: bool, remedy: str) -> None:
    """Check image files, many at a time.

    Args:
        files: each with what is written before its name, such as its sample.
        decode: see :func:`image_faults`.
        remedy: what the user can do.

    Raises:
        UserError: files are missing or broken; it names the first ten.
    """
    faults = image_faults(files, decode)
    if faults:
        named = [f"{files[path]}{path} {fault}" for path, fault in faults.items()]
        count = f"{len(named):,} of {len(files):,} image files cannot be used: " if len(named) > 1 else ""
        more = f"; and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
        raise UserError(f"{count}{'; '.join(named[:NAMED])}{more}; {remedy}.")


def image_faults(paths: Iterable[Path], decode: bool = False) -> dict[Path, str]:
    """What is wrong with image files, by path; many at a time, thousands per second.

    Without ``decode``, only the headers are read, and files are decoded that may be cut off or that are deep gray.

    Args:
        paths: files, which need not exist.
        decode: decode every file completely.
    """
    paths = list(dict.fromkeys(paths))
    Image.init()  # not in several threads at once
    with ThreadPoolExecutor(min(32, 4 + (os.cpu_count() or 1))) as pool:
        faults = pool.map(lambda path: image_fault(path, decode), paths)
        return {path: fault for path, fault in zip(paths, faults, strict=True) if fault is not None}


def image_fault(path: Path, decode: bool = False) -> str | None:
    """What is wrong with an image file, worded to follow its name; None if nothing is.

    Args:
        path: the file.
        decode: decode it completely; otherwise only if its header or its end say that something may be wrong.
    """
    fault = file_fault(path)
    if fault is not None:
        return fault
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if decode or is_deep(image) or _may_be_cut_off(image, file):
                to_rgb(image)
    except Exception as error:  # see `open_image`
        return _reason(path, error)
    return None


def file_fault(path: Path) -> str | None:
    """Why a path is no file that could be read, worded to follow its name; None if it is one."""
    try:
        if path.is_symlink() and not path.exists():
            return f"is a link to {os.readlink(path)}, which does not exist"
        if path.is_dir():
            return "is a folder"
        if not path.exists():
            return "does not exist"
        if not path.is_file():  # a pipe would wait for ever
            return "is no regular file"
        return "is empty (0 bytes)" if path.stat().st_size == 0 else None
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except ValueError as error:  # NUL or half a surrogate pair in the name
        return f"cannot exist by this name ({error})"


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return f"cannot be read ({_kind(path)})"
    return f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})"


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    brand = _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
    if brand is not None and brand.replace("HEIC", "HEIF") not in FORMATS:
        return f"a {brand} picture; {HOW_TO_READ[brand]}"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page, no picture"
    return f"no picture in {', '.join(FORMATS)}, or a damaged one"


def _may_be_cut_off(image: Image.Image, file: BinaryIO) -> bool:
    """Whether a file does not end as its format ends; a doubt only, as other data may follow a whole picture."""
    place, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    file.seek(max(0, size - _SEARCHED))
    end = file.read()
    boxes_end = _last_box_end(file) if image.format in ("AVIF", "HEIF") else size
    file.seek(place)  # where Pillow goes on
    if image.format in ("JPEG", "MPO"):  # cameras append videos; a small file's end may be that of its thumbnail
        return not end.endswith(b"\xff\xd9") and (size < 4 * _SEARCHED or b"\xff\xd9" not in end)
    if image.format == "PNG":
        return not end.endswith(b"IEND\xaeB`\x82")
    if image.format == "GIF":
        return not end.endswith(b";")
    if image.format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 > size
    if image.format == "BMP":
        return int.from_bytes(head[2:6], "little") > size
    if image.format == "TIFF":
        return any(part > size for part in _part_ends(image))
    return boxes_end != size


def _part_ends(image: Image.Image) -> Iterator[int]:
    """Where the strips or tiles of a TIFF end; nothing where it does not say how long they are."""
    tags: Any = getattr(image, "tag_v2", {})
    for starts, lengths in ((273, 279), (324, 325)):
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False):
            yield start + length


def _last_box_end(file: BinaryIO) -> int:
    """Where the last of the top-level boxes of a file in ISO's base media format ends."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or length < 8:
            return place
        place += length
