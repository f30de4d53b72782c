"""``predict --images ... --caption ...``: a person's question in place of an annotation file."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError

HELP = {
    "--images": "Photos to rank: files, folders, or quoted patterns such as 'holiday/*.jpg'; in place of --data.",
    "--caption": "What to rank them for; several may follow, and the option may be repeated.",
    "--captions": "A text file with one caption per line.",
    "--contact_sheet": "Picture file to write: the photos of each caption in the order of the ranking.",
}


def add_photo_options(parser: Any, known: bool = False) -> None:
    """Add the options to a parser: for its help, or to read them."""
    for name in ("--images", "--caption"):
        extend: dict[str, Any] = {"action": "extend"} if known else {}
        parser.add_argument(name, nargs="+", type=str, help=HELP[name], **extend)
    for name in ("--captions", "--contact_sheet"):
        parser.add_argument(name, type=str, help=HELP[name])


def translated(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """``predict``'s arguments with the photo options written as options of PhotoData, and the contact sheet's path.

    Raises:
        UserError: photos without a caption or the reverse, or the file of captions cannot be read.
    """
    if not arguments or arguments[0] != "predict":
        return list(arguments), None
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    add_photo_options(parser, known=True)
    asked, others = parser.parse_known_args(arguments)
    if asked.contact_sheet and Path(asked.contact_sheet).suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
        raise UserError(f"Cannot write the contact sheet {asked.contact_sheet}; name a .jpg, .png or .webp file.")
    captions = [*(asked.caption or []), *(_lines(asked.captions) if asked.captions else [])]
    if asked.images is None:
        if captions or asked.contact_sheet:
            raise UserError("--caption, --captions and --contact_sheet go with --images.")
        return others, None
    if not captions:
        raise UserError("Say what the photos are to be ranked for: --caption '...', or --captions FILE.")
    data = ["--data=lad_pl.data.PhotoData", f"--data.photos={json.dumps(asked.images)}"]
    named = [argument for argument in others if argument.partition("=")[0] in ("--data", "--data.class_path")]
    if named:
        raise UserError(f"--images takes the place of {named[0].partition('=')[0]}; leave one of them out.")
    # Before the options of --data that were typed, behind the configuration files.
    at = max((i for i, argument in enumerate(others) if _names_config(others, i)), default=0) + 1
    return [*others[:at], *data, f"--data.captions={json.dumps(captions)}", *others[at:]], asked.contact_sheet


def _names_config(arguments: Sequence[str], place: int) -> bool:
    """Whether an argument is a configuration file, or the option that is followed by one."""
    previous = arguments[place - 1] if place else ""
    return arguments[place].startswith(("--config=", "-c=")) or previous in ("--config", "-c")


def _lines(path: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the captions in {path}: {getattr(error, 'strerror', None) or error}.") from error
    captions = [line for line in lines if line]
    if not captions:
        raise UserError(f"{path} holds no caption.")
    return captions
