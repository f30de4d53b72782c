"""MMIU, restricted to the items whose options are the images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lad_pl.data.prepare.questions import (
    AnnotationWriter,
    ImageFolder,
    SkipItem,
    check_order_free,
    letter_index,
    option_images,
    pick,
    split_options,
)
from lad_pl.data.prepare.table_reader import read_rows
from lad_pl.errors import UserError

_LETTERED = r"\s*[A-Z][.:)]\s*(?:the )?(?:\w+ (?:image|picture)|(?:image|picture) ?\d+)[.,;]?"
_LEAD = re.compile(rf"(?:please )?select from the following choices[.:]?|^candidates:(?:{_LETTERED})*$", re.IGNORECASE)


def mmiu(annotations: str, images: str, output: str = "data/mmiu", tasks: list[str] | None = None) -> None:
    """Turn MMIU's items into annotation files, one per task and number of images.

    An item fits if its options name every image once, and its question refers to no image by its position. Retrieval
    with a query image does not fit: the query is shown, but cannot be the answer.

    Args:
        annotations: MMIU's list of items (all.json of FanqingM/MMIU-Benchmark, or the same as JSONL or Parquet).
        images: folder of the unpacked images, with or without the folders Low-level-semantic and so on.
        output: folder to write to.
        tasks: tasks to convert; all if unset.
    """
    rows = read_rows(annotations)
    for column in ("task", "options", "question", "input_image_path", "output"):
        rows.require(column, "MMIU's annotations have it")
    folder = ImageFolder(images)
    writer = AnnotationWriter(annotations)
    seen: dict[str, int] = {}
    for label, row in rows:
        task = str(row.get("task"))
        seen[task] = seen.get(task, -1) + 1
        if tasks is not None and task not in tasks:
            continue
        name = f"{task}_{seen[task]}"
        try:
            shown, index, caption = _read_item(row)
            names = [_find(path, folder) for path in shown]
            writer.add(task, name, names, index, caption)
        except SkipItem as reason:
            writer.leave_out(f"{name}, {label}", reason)
    unknown = sorted(set(tasks or []) - set(seen))
    if unknown:
        raise UserError(f"{annotations} has no task '{unknown[0]}'; it has: {', '.join(sorted(seen))}.")
    writer.finish(output, folder.path)


def _read_item(row: Mapping[str, Any]) -> tuple[list[str], int, str]:
    """Image paths, 0-based target and text of an item."""
    answer = letter_index(row.get("output"))
    options, shown, question = row.get("options"), row.get("input_image_path"), row.get("question")
    if not isinstance(options, str) or not options.strip():
        raise SkipItem("no options")
    if not isinstance(shown, list) or not all(isinstance(path, str) for path in shown) or len(shown) < 2:
        raise SkipItem("fewer than two images")
    if not isinstance(question, str) or not question.strip():
        raise SkipItem("no question")
    index = pick(option_images(split_options(options), len(shown)), answer)
    caption = "\n".join(filter(None, [_context(str(row.get("context") or ""), options), question.strip()]))
    check_order_free(caption)
    return shown, index, caption


def _context(context: str, options: str) -> str:
    """The context without the options, which it repeats: the prompt has its own identifiers.

    >>> _context("Judge the photos.\\nSelect from the following choices.\\nA: the first image", "A: the first image")
    'Judge the photos.'
    """
    repeated = {line.strip() for line in options.splitlines()}
    lines = (_LEAD.sub("", line.strip()).strip() for line in context.splitlines())
    return "\n".join(line for line in lines if line and line not in repeated)


def _find(path: str, folder: ImageFolder) -> str:
    """The image of a path, whose first folder (the kind of task) not every copy of the images has."""
    parts = PurePosixPath(path).parts
    return folder.find(path, *([str(PurePosixPath(*parts[1:]))] if len(parts) > 1 and parts[0] != "/" else []))
