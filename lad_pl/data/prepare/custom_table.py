"""Annotation files from a table of one's own: JSONL, JSON, CSV, Parquet or a Hugging Face data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lad_pl.data.prepare.captions import in_one_line
from lad_pl.data.prepare.questions import (
    AnnotationWriter,
    ImageFolder,
    SkipItem,
    check_order_free,
    letter_index,
    option_images,
    pick,
    split_options,
    store_image,
)
from lad_pl.data.prepare.table_reader import Rows, read_rows
from lad_pl.errors import UserError
from lad_pl.files import parse_json

Answer = Literal["index", "number", "letter", "none"]
_DEFAULT_COLUMNS = {
    "id": "id",
    "caption": "caption",
    "question": "question",
    "images": "images",
    "answer": "answer_index",
    "options": "options",
}
_EMBEDDED = "embedded"


def table(
    source: str,
    output: str,
    columns: dict[str, str] | None = None,
    images: str | None = None,
    answer: Answer = "index",
    split: str | None = None,
    subset: str | None = None,
) -> None:
    """Turn a table of questions or captions, images and answers into annotation files, one per number of images.

    Columns, unless mapped: id (optional), question or caption, images, answer_index, and options (optional: the names
    of the images, such as "the second image"; items whose options are texts are left out).

    Args:
        source: file (.jsonl, .json, .csv, .parquet), folder of a Hugging Face data set, or its id on the hub.
        output: folder to write to; images that are embedded in the table are written to its images folder.
        columns: names of the columns for id, caption or question, images, answer, options; several columns of one
            image each as image_1,image_2.
        images: folder that image paths are relative to; the folder of the source if unset.
        answer: how the answer is given: as index from 0, number from 1, letter from A, or none (for predict only).
        split: split of a Hugging Face data set; needed if it has several.
        subset: configuration of a Hugging Face data set; needed if it has several.
    """
    rows = read_rows(source, split, subset)
    names = _choose_columns(rows, columns or {}, answer)
    text = "question" if "question" in names else "caption"
    given = ImageFolder(images or (source if Path(source).is_dir() else Path(source).parent))
    embedded = ImageFolder(Path(output) / "images")
    kinds = set()
    writer = AnnotationWriter(source)
    for label, row in rows:
        name = str(label if _cell(row, names, "id") is None else _cell(row, names, "id"))
        try:
            shown, index, words = _read_item(row, names, text, answer)
            stored = [store_image(image, given, embedded) for image in shown]
            kinds |= {_kind(image) for image in shown}
            writer.add(rows.name, name, stored, index, words)
        except SkipItem as reason:
            writer.leave_out(label if name == label else f"{label}, id {name}", reason)
    if len(kinds) > 1:
        raise UserError(f"{source}: some images are embedded and others are paths; split it into two tables.")
    writer.finish(output, embedded.path if kinds == {_EMBEDDED} else given.path, questions=text == "question")


# --------------------------------------------------------------------------------------------------------- one row


def _choose_columns(rows: Rows, mapping: Mapping[str, str], answer: Answer) -> dict[str, str]:
    """The column of every field that the table has.

    Raises:
        UserError: an unknown field is mapped, or a column that is needed is missing.
    """
    unknown = [field for field in mapping if field not in _DEFAULT_COLUMNS]
    if unknown:
        raise UserError(f"columns.{unknown[0]} is no field; map {', '.join(_DEFAULT_COLUMNS)}.")
    for field, names in mapping.items():
        for name in names.split(","):
            rows.require(name, f"columns.{field}")
    chosen = {field: name for field, name in _DEFAULT_COLUMNS.items() if name in rows.columns} | dict(mapping)
    texts = [field for names in (mapping, chosen) for field in ("caption", "question") if field in names]
    needed = [*(texts or ["caption"])[:1], "images", *(["answer"] if answer != "none" else [])]
    for field in needed:
        if field not in chosen:
            rows.require(_DEFAULT_COLUMNS[field], f"name its column for {field} with --columns.{field}")
    return {field: name for field, name in chosen.items() if field in (*needed, "id", "options")}


def _read_item(
    row: Mapping[str, Any], names: Mapping[str, str], text: str, answer: Answer
) -> tuple[list[Any], int | None, str]:
    """Images, 0-based target and text of an item."""
    words = _cell(row, names, text)
    if not isinstance(words, str) or not words.strip():
        raise SkipItem(f"no {text}")
    if text == "question":
        check_order_free(words)
    shown = _shown(row, names["images"])
    options = _options(_cell(row, names, "options"), len(shown))
    index = None if answer == "none" else pick(options, _answer(_cell(row, names, "answer"), answer))
    return shown, index, words.strip() if text == "question" else in_one_line(words)


def _cell(row: Mapping[str, Any], names: Mapping[str, str], field: str) -> Any:
    value = row.get(names[field]) if field in names else None
    return None if value == "" else value


def _shown(row: Mapping[str, Any], names: str) -> list[Any]:
    """The images of a row, from one column of lists or several columns of one image each."""
    cells = [row.get(name) for name in names.split(",")]
    shown = list(_list(cells[0]) if len(cells) == 1 else cells)
    while len(cells) > 1 and shown and shown[-1] in (None, ""):  # a row with fewer images leaves its last columns empty
        shown.pop()
    if len(shown) < 2:
        raise SkipItem("fewer than two images")
    return shown


def _list(value: Any) -> list[Any]:
    """The cell as a list; a text may hold a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError) as error:
            raise SkipItem("a list that is no valid JSON") from error
    return list(value) if isinstance(value, list | tuple) else [value]


def _options(options: Any, num_images: int) -> Sequence[int]:
    """The image of each option; without options, option k is image k."""
    if options is None:
        return range(num_images)
    if isinstance(options, str) and not options.lstrip().startswith("["):
        return option_images(split_options(options), num_images)
    return option_images([str(option) for option in _list(options)], num_images)


def _answer(value: Any, style: Answer) -> int:
    if style == "letter":
        return letter_index(value)
    if value is None:
        raise SkipItem("no answer")
    text = str(value).strip().removesuffix(".0")
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}", text):
        raise SkipItem(f"the answer is no {style}")
    return int(text) - (style == "number")


def _kind(image: Any) -> str:
    return _EMBEDDED if isinstance(image, bytes) or (isinstance(image, dict) and image.get("bytes")) else "path"
