"""The samples that the page shows one by one: their choice, their values for the page's script, their thumbnails."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from lad_pl.analysis.report.profiles import attention_shares
from lad_pl.analysis.report.reported_run import BASELINE, ReportedRun
from lad_pl.data.images import open_image
from lad_pl.demo.worlds import load_image
from lad_pl.errors import UserError

SIDE = 160
"""Pixels along the longer edge of a thumbnail."""


@dataclass(frozen=True)
class Gallery:
    """The prompts on the page."""

    content: Mapping[str, Any]
    """What the script reads: methods, samples, prompts, and every distinct image once."""
    missing: Sequence[str]
    """Names of the images that could not be shown."""
    shown: int
    """Samples on the page."""
    total: int
    """Samples of the run."""


def make_gallery(run: ReportedRun, size: int, folder: Path | None) -> Gallery:
    """Choose samples and gather what is shown of them.

    Args:
        run: the run.
        size: how many samples at most, each under all its permutations.
        folder: of the images; the one recorded in the run if None.
    """
    stored = run.report.get("images")
    folder = folder if folder is not None or stored is None else Path(stored)
    chosen = choose(run.correct(BASELINE), run.correct(run.headline), size)
    num_permutations = run.prompts.num_permutations
    first_rows = [sample * num_permutations for sample in chosen]
    pictures = thumbnails((name for row in first_rows for name in run.records[row]["images"]), folder)
    number_of = {name: number for number, name in enumerate(pictures)}
    samples = [
        {"id": record["id"], "caption": record["caption"], "images": [number_of[name] for name in record["images"]]}
        for record in (run.records[row] for row in first_rows)
    ]
    prompts = [
        prompt
        for number, row in enumerate(first_rows)
        for prompt in _prompts(run, number, range(row, row + num_permutations))
    ]
    content = {
        "methods": [*run.methods],
        "headline": run.headline,
        "candidates": run.num_candidates,
        "orders": num_permutations,
        "names": [*pictures],
        "pictures": [*pictures.values()],
        "samples": samples,
        "prompts": prompts,
    }
    missing = [name for name, picture in pictures.items() if picture is None]
    return Gallery(content, missing, len(chosen), len(run.records) // num_permutations)


def choose(base: Tensor, corrected: Tensor, size: int) -> list[int]:
    """Numbers of at most ``size`` samples, a mix that is worth looking at.

    They are taken in turn from those that the correction breaks in some order of the images, those that it fixes,
    those that both answer wrongly, and those that both answer correctly, until none is left or the page is full.

    Args:
        base: (G, T) whether the baseline answers each prompt correctly.
        corrected: (G, T) the same for the corrected answers.
        size: how many.
    """
    lost, gained = (base & ~corrected).any(1), (~base & corrected).any(1)
    wrong = (~base & ~corrected).any(1)
    kinds = torch.where(lost, 0, torch.where(gained, 1, torch.where(wrong, 2, 3)))
    waiting = [(kinds == kind).nonzero().flatten().tolist() for kind in range(4)]
    turns = [(turn, kind, sample) for kind, samples in enumerate(waiting) for turn, sample in enumerate(samples)]
    return [sample for _, _, sample in sorted(turns)[:size]]


def _prompts(run: ReportedRun, sample: int, rows: range) -> list[dict[str, Any]]:
    chosen = torch.tensor(rows)
    attention = attention_shares(run.prompts.evidence.layer_attention[chosen], run.run.readout.top_layers)
    choices = {name: values[chosen].tolist() for name, values in run.choices.items()}
    shares = {name: _per_mille(values[chosen].exp()) for name, values in run.log_probs.items()}
    return [
        {
            "sample": sample,
            "order": number,
            "permutation": run.records[row]["permutation"],
            "target": run.records[row]["target"],
            "choices": [choices[name][number] for name in run.methods],
            "shares": [shares[name][number] if name in shares else None for name in run.methods],
            "attention": _per_mille(attention[number]),
        }
        for number, row in enumerate(rows)
    ]


def _per_mille(shares: Tensor) -> Any:
    return (1000 * shares).round().int().tolist()


def thumbnails(names: Iterable[str], folder: Path | None) -> dict[str, str | None]:
    """A data URI for every name, None for an image that cannot be shown.

    Args:
        names: of images, relative to the folder.
        folder: the image folder; scenes of the demo are rendered where it has no such file.
    """
    names = list(dict.fromkeys(names))
    return {name: _thumbnail(name, folder) for name in track(names, "Thumbnails", transient=True)}


def _thumbnail(name: str, folder: Path | None) -> str | None:
    def from_file() -> Image.Image:
        path = Path(name) if folder is None else folder / name
        if not path.is_file():  # nor a pipe, which would wait for ever
            raise UserError(f"image file {path} does not exist")
        return open_image(path)  # as the model sees it: without its EXIF orientation

    sources: tuple[Callable[[], Image.Image], ...] = (from_file, lambda: load_image(name))
    for source in sources:
        try:
            return _data_uri(source())
        except (UserError, OSError, ValueError):
            continue
    return None


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
