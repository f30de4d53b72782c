"""Annotation files: a JSON list of ``{id, image_ids, index, caption}``, the format of the published code."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lad_pl.data.image_names import plain_name
from lad_pl.errors import UserError
from lad_pl.files import atomic_write, brief, is_writable, read_json
from lad_pl.provenance import short_digest
from lad_pl.types import Sample


def read_annotations(path: str | Path) -> list[Sample]:
    """Read and check an annotation file.

    ``image_ids`` are image names relative to the image folder; ``index`` is the 0-based index of the correct one
    among them and may be absent where it is unknown (prediction). Other keys are ignored.

    Raises:
        UserError: the file is missing or no JSON list, or a sample lacks a field, has one of another type or with
            characters that cannot be written, has an index outside its images, repeats an id or an image (by whatever
            spelling of its name), or has another number of images than the first sample.
    """
    path = Path(path)
    entries = read_json(path, "Name an annotation file with data.annotations (or .calibration_annotations, ...).")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"The annotation file {path} must hold a non-empty JSON list of samples.")
    try:
        samples = [_sample(entry, number, path) for number, entry in enumerate(entries)]
    except _OutsideError as error:
        raise UserError(f"{error}{_ONE_BASED if _look_one_based(entries) else ''}") from error
    _check_set(samples, path)
    return samples


def digest(samples: Sequence[Sample]) -> str:
    """A short fingerprint of everything in a list of samples."""
    content = [[sample.id, sample.images, sample.caption, sample.target] for sample in samples]
    return short_digest(content)


def sample_key(sample: Sample) -> str:
    """A short fingerprint of a question: the images, in whatever order, and the caption."""
    return short_digest([sorted(sample.images), sample.caption])


def question_key(sample: Sample, image: str = "") -> str:
    """A short fingerprint of what a sample asks, whatever the other images: its caption and its correct image.

    Spaces of the caption and spellings of the name do not matter. The correct answer must be known.

    Args:
        sample: the sample.
        image: a fingerprint of the correct image's content; its name if unset.
    """
    assert sample.target is not None
    words = unicodedata.normalize("NFC", " ".join(sample.caption.split()))
    name = unicodedata.normalize("NFC", plain_name(sample.images[sample.target]))
    return short_digest([words, {"content": image} if image else name])


class _OutsideError(UserError):
    """An index is outside its sample's images."""


_ONE_BASED = " The indices of this file look 1-based; they must count from 0."


def _sample(entry: Any, number: int, path: Path) -> Sample:
    where = f"{path}: sample {number}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object with id, image_ids, index and caption.")
    name = _name(entry.get("id", number), where)
    where += f" (id {name})" if "id" in entry else ""
    missing = [field for field in ("image_ids", "caption") if field not in entry]
    if missing:
        raise UserError(f"{where} lacks '{missing[0]}'.")
    images = _images(entry["image_ids"], where)
    return Sample(name, images, _caption(entry["caption"], where), _target(entry.get("index"), len(images), where))


def _name(value: Any, where: str) -> str:
    """A sample's id as a text; numbers are taken as well."""
    if type(value) not in (str, int, float) or (type(value) is float and not math.isfinite(value)):
        raise UserError(f"{where}: id is {brief(value)}; it must be a text or a number.")
    if not is_writable(str(value)):
        raise UserError(f"{where}: the id {value!a} has half of a character, which UTF-8 cannot write.")
    return str(value)


def _images(names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: image_ids must be a list of at least two image names.")
    seen: dict[str, str] = {}
    for name in names:
        plain = plain_name(name)
        if not is_writable(name) or any(unicodedata.category(character) == "Cc" for character in name):
            raise UserError(f"{where}: the image name {name!a} has characters that no file name has; fix it.")
        if plain == ".":
            raise UserError(f"{where}: the image name '{name}' names no file.")
        if plain in seen:
            spelled = "" if seen[plain] == name else f" ('{seen[plain]}' and '{name}' name one file)"
            raise UserError(f"{where} shows the same image twice{spelled}; the correct answer would be ambiguous.")
        seen[plain] = name
    return tuple(names)


def _caption(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where}: caption must be a text.")
    if not text.strip():
        raise UserError(f"{where}: the caption is empty; write one, or remove the sample.")
    if not is_writable(text):
        raise UserError(f"{where}: the caption {brief(text)} has half of a character, which UTF-8 cannot write.")
    return text


def _target(index: Any, num_images: int, where: str) -> int | None:
    if index is not None and type(index) is not int:
        raise UserError(f"{where}: index is {brief(index)}; it must be a whole number, counted from 0.")
    if index is not None and not 0 <= index < num_images:
        outside = f"outside its {num_images} images (0 to {num_images - 1})"
        raise _OutsideError(f"{where}: index is {brief(index)}, {outside}.")
    return index


def _look_one_based(entries: Sequence[Any]) -> bool:
    """Whether the indices count from 1: some sample's is its number of images, and none is 0 or larger."""
    indices = [
        (entry["index"], len(entry["image_ids"]))
        for entry in entries
        if isinstance(entry, dict) and type(entry.get("index")) is int and isinstance(entry.get("image_ids"), list)
    ]
    return all(1 <= index <= count for index, count in indices) and any(index == count for index, count in indices)


def _check_set(samples: Sequence[Sample], path: Path) -> None:
    first = samples[0]
    seen: set[str] = set()
    for sample in samples:
        if sample.num_candidates != first.num_candidates:
            raise UserError(
                f"{path}: sample {sample.id} has {sample.num_candidates} images, sample {first.id} has "
                f"{first.num_candidates}; put samples of different size into separate files."
            )
        if sample.id in seen:
            raise UserError(f"{path}: the id {sample.id} occurs twice; ids must be unique.")
        seen.add(sample.id)


def write_annotations(path: str | Path, samples: Sequence[dict[str, Any]]) -> None:
    """Write an annotation file, as :func:`lad_pl.data.read_annotations` reads it."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(list(samples), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
