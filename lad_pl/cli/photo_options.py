"""``predict --images ... --caption ...``: photos and captions in place of an annotation file."""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lad_pl.errors import UserError
from lad_pl.files import read_text, split_lines

HELP = {
    "--images": "Photos to rank: files, folders, or quoted patterns such as 'holiday/*.jpg'; in place of --data.",
    "--caption": "Caption to rank the photos for; several may follow, and the option may be repeated.",
    "--captions": "A text file with one caption per line.",
    "--contact_sheet": "Image file to write: the photos of each caption in the order of the ranking.",
}


def add_photo_options(parser: Any, extend: bool = False) -> None:
    """Add the options to a parser.

    Args:
        parser: of argparse or jsonargparse, or a group of its options.
        extend: collect the values of a repeated ``--images`` or ``--caption``; argparse only.
    """
    repeated: dict[str, Any] = {"action": "extend"} if extend else {}
    for name, metavar in (("--images", "FILE"), ("--caption", "TEXT")):
        parser.add_argument(name, nargs="+", type=str, metavar=metavar, help=HELP[name], **repeated)
    for name in ("--captions", "--contact_sheet"):
        parser.add_argument(name, type=str, metavar="FILE", help=HELP[name])


def translated(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """``predict``'s arguments with the photo options written as options of PhotoData, and the contact sheet's path.

    Raises:
        UserError: photos without a caption or the reverse, or the file of captions cannot be read.
    """
    if not arguments or arguments[0] != "predict":
        return list(arguments), None
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    add_photo_options(parser, extend=True)
    photos, others = parser.parse_known_args(arguments)
    if photos.contact_sheet and Path(photos.contact_sheet).suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
        raise UserError(f"Cannot write the contact sheet {photos.contact_sheet}; name a .jpg, .png or .webp file.")
    captions = [*(photos.caption or []), *(_lines(photos.captions) if photos.captions else [])]
    if photos.images is None:
        if captions or photos.contact_sheet:
            raise UserError("--caption, --captions and --contact_sheet go with --images.")
        return others, None
    if not captions:
        raise UserError("Say what the photos are to be ranked for: --caption '...', or --captions FILE.")
    data = [
        "--data=lad_pl.data.PhotoData",
        f"--data.photos={_yaml(photos.images, 'file name', 'rename the file')}",
        f"--data.captions={_yaml(captions, 'caption', 'write it as UTF-8')}",
    ]
    named = [name for name in (other.partition("=")[0] for other in others) if name in ("--data", "--data.class_path")]
    if named:
        raise UserError(f"--images takes the place of {named[0]}; leave one of them out.")
    # After the configuration files, whose data class they replace, and before typed options of --data.
    at = max((i for i, argument in enumerate(others) if _names_config(others, i)), default=0) + 1
    return [*others[:at], *data, *others[at:]], photos.contact_sheet


def _names_config(arguments: Sequence[str], place: int) -> bool:
    """Whether the argument at a place is a configuration file, or an option that contains one."""
    previous = arguments[place - 1] if place else ""
    return arguments[place].startswith(("--config=", "-c=")) or previous in ("--config", "-c")


def _yaml(texts: Sequence[str], what: str, remedy: str) -> str:
    """Texts as a YAML list that is read as the same texts, whatever is in them.

    Raises:
        UserError: a text has bytes that are no UTF-8, which Python keeps as halves of surrogate pairs.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"The {what} {text!r} has characters that cannot be written; {remedy}.") from error
    return yaml.safe_dump(list(texts), default_style='"', default_flow_style=True, width=math.inf).strip()


def _lines(path: str) -> list[str]:
    lines = [line.strip() for line in split_lines(read_text(path, what="the captions in"))]
    captions = [line for line in lines if line]
    if not captions:
        raise UserError(f"{path} holds no caption.")
    return captions
