"""Annotation files: a JSON list of ``{id, image_ids, index, caption}``, the format of the published code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError
from lad_pl.files import atomic_write, read_json
from lad_pl.provenance import short_digest
from lad_pl.types import Sample


def read_annotations(path: str | Path) -> list[Sample]:
    """Read and check an annotation file.

    ``image_ids`` are image names relative to the image folder; ``index`` is the 0-based index of the correct one
    among them and may be absent where it is unknown (prediction). Other keys are ignored.

    Raises:
        UserError: the file is missing or no JSON list, or a sample lacks a field, has an index outside its images,
            repeats an id or an image, or has another number of images than the first sample.
    """
    path = Path(path)
    entries = read_json(path, "Name an annotation file with data.annotations (or .calibration_annotations, ...).")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"The annotation file {path} must hold a non-empty JSON list of samples.")
    samples = [_sample(entry, number, path) for number, entry in enumerate(entries)]
    _check_set(samples, path)
    return samples


def digest(samples: Sequence[Sample]) -> str:
    """A short fingerprint of everything in a list of samples."""
    content = [[sample.id, sample.images, sample.caption, sample.target] for sample in samples]
    return short_digest(content)


def sample_key(sample: Sample) -> str:
    """A short fingerprint of a question: the images, in whatever order, and the caption."""
    return short_digest([sorted(sample.images), sample.caption])


def _sample(entry: Any, number: int, path: Path) -> Sample:
    where = f"{path}: sample {number}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object with id, image_ids, index and caption.")
    where += f" (id {entry['id']})" if "id" in entry else ""
    missing = [name for name in ("image_ids", "caption") if name not in entry]
    if missing:
        raise UserError(f"{where} lacks '{missing[0]}'.")
    images, caption, target = entry["image_ids"], entry["caption"], entry.get("index")
    if not isinstance(images, list) or len(images) < 2 or not all(isinstance(name, str) for name in images):
        raise UserError(f"{where}: image_ids must be a list of at least two image names.")
    if not isinstance(caption, str):
        raise UserError(f"{where}: caption must be a text.")
    if len(set(images)) < len(images):
        raise UserError(f"{where} shows the same image twice; the correct answer would be ambiguous.")
    if target is not None and (type(target) is not int or not 0 <= target < len(images)):
        raise UserError(f"{where}: index is {target!r}, outside its {len(images)} images (0 to {len(images) - 1}).")
    return Sample(str(entry.get("id", number)), tuple(images), caption, target)


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
