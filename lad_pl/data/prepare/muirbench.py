"""MuirBench, restricted to the items whose options are the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lad_pl.data.prepare.questions import (
    AnnotationWriter,
    ImageFolder,
    SkipItem,
    check_order_free,
    letter_index,
    option_images,
    pick,
    store_image,
)
from lad_pl.data.prepare.table_reader import read_rows
from lad_pl.errors import UserError

_IMAGE = "<image>"
_NONE = "none of the choices provided"


def muirbench(
    dataset: str = "MUIRBENCH/MUIRBENCH",
    output: str = "data/muirbench",
    tasks: list[str] | None = None,
    split: str | None = None,
) -> None:
    """Turn MuirBench's items into annotation files, one per task and number of images; write their images as files.

    An item fits if every option is an image, except "None of the choices provided", which every item has and which is
    dropped. Items with that answer (the unanswerable counterparts) or with an image in the question are left out.

    Args:
        dataset: id on the Hugging Face hub, local folder of it, or a Parquet file.
        output: folder to write to; the images go into its images folder.
        tasks: tasks to convert, such as "Image-Text Matching"; all if unset.
        split: split of the data set; needed if it has several.
    """
    rows = read_rows(dataset, split)
    for column in ("idx", "task", "question", "options", "answer", "image_list"):
        rows.require(column, "MuirBench has it")
    folder = ImageFolder(Path(output) / "images")
    writer = AnnotationWriter(dataset)
    seen = set()
    for label, row in rows:
        task = str(row.get("task"))
        seen.add(task)
        if tasks is not None and task not in tasks:
            continue
        try:
            shown, index = _read_item(row)
            names = [store_image(image, given=folder, embedded=folder) for image in shown]
            writer.add(task, str(row.get("idx")), names, index, row["question"].strip())
        except SkipItem as reason:
            writer.leave_out(f"{label}, idx {row.get('idx')}", reason)
    unknown = sorted(set(tasks or []) - seen)
    if unknown:
        raise UserError(f"{dataset} has no task '{unknown[0]}'; it has: {', '.join(sorted(seen))}.")
    writer.finish(output, folder.path)


def _read_item(row: Mapping[str, Any]) -> tuple[list[Any], int]:
    """Images and 0-based target of an item."""
    options, shown, question = row.get("options"), row.get("image_list"), row.get("question")
    if not isinstance(options, list) or not isinstance(shown, list) or not isinstance(question, str):
        raise SkipItem("no options, images or question")
    correct = pick(range(len(options)), letter_index(row.get("answer")))
    shown_options = [index for index, option in enumerate(options) if str(option).strip().rstrip(".").lower() != _NONE]
    if correct not in shown_options:
        raise SkipItem("unanswerable (the answer is 'None of the choices provided')")
    if any(str(options[index]).strip() != _IMAGE for index in shown_options):
        raise SkipItem("the options are texts, not the images")
    if _IMAGE in question:
        raise SkipItem("an image in the question, which cannot be the answer")
    check_order_free(question)
    if len(shown_options) < 2:
        raise SkipItem("fewer than two images")
    return shown, option_images([_IMAGE] * len(shown_options), len(shown))[shown_options.index(correct)]
