"""Image names of annotation files: which name the same file, which lead out of the image folder, which folder fits."""

from __future__ import annotations

import filecmp
import ntpath
import os
import posixpath
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lad_pl.errors import UserError

if TYPE_CHECKING:  # it imports torch, which the help of `prepare` does without
    from lad_pl.types import Sample


def plain_name(name: str) -> str:
    """A name without detours.

    >>> plain_name("./a/../b.png")
    'b.png'
    """
    return posixpath.normpath(name)


def leads_outside(name: str) -> bool:
    """Whether a name leads out of the folder that it is relative to, read as POSIX or as Windows does.

    >>> [leads_outside(name) for name in ("a/../b.png", "../b.png", "/b.png", "C:\\\\b.png", "a..png")]
    [False, True, True, True, False]
    """
    drive, path = ntpath.splitdrive(ntpath.normpath(name))  # knows both separators
    return path == ".." or path.startswith(("..\\", "\\")) or bool(drive and os.name == "nt")


def check_inside(samples: Iterable[Sample], folder: Path) -> None:
    """Refuse names that lead out of the image folder. Links within it may: they are its owner's choice.

    Raises:
        UserError: a name is absolute, or climbs out of the folder.
    """
    for sample in samples:
        for name in filter(leads_outside, sample.images):
            raise UserError(
                f"Sample {sample.id}: the image name '{name}' leads out of the image folder {folder}; name images "
                "within it, or allow others with --data.allow_outside true."
            )


def check_distinct(samples: Iterable[Sample], folder: Path) -> None:
    """Refuse samples whose correct answer is ambiguous. Images that do not exist are not this function's concern.

    Raises:
        UserError: two names of a sample lead to the same file, or an image is an exact copy of the correct one.
    """
    status = cache(_status)
    for sample in samples:
        paths = [folder / name for name in sample.images]
        files = [status(path) for path in paths]
        seen: dict[tuple[int, int], str] = {}
        for name, file in zip(sample.images, files, strict=True):
            if file is not None and file.st_ino and seen.setdefault((file.st_dev, file.st_ino), name) != name:
                other = seen[file.st_dev, file.st_ino]
                raise UserError(
                    f"Sample {sample.id} shows the same image twice: '{other}' and '{name}' are one file in {folder}; "
                    "the correct answer would be ambiguous. Fix or remove the sample."
                )
        correct = None if sample.target is None else files[sample.target]
        if sample.target is None or correct is None or not correct.st_size:
            continue
        for place, file in enumerate(files):
            same_size = file is not None and file.st_size == correct.st_size and place != sample.target
            if same_size and filecmp.cmp(paths[place], paths[sample.target], shallow=False):
                raise UserError(
                    f"Sample {sample.id}: '{sample.images[place]}' is an exact copy of the correct image "
                    f"'{sample.images[sample.target]}'; the correct answer would be ambiguous. Remove the sample."
                )


def fitting_folder(names: Sequence[str], folder: Path) -> Path | None:
    """The folder above an image folder, or the working directory or one above it, in which all of the names exist.

    None if there is none, or if one of the names exists in the image folder itself.
    """
    if any((folder / name).is_file() for name in names):
        return None
    above = (*folder.absolute().parents, Path.cwd(), *Path.cwd().parents)
    return next((parent for parent in above if all((parent / name).is_file() for name in names)), None)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None
