"""Tiny checkpoints: loaded, edited, and samples for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lad_pl import VisionLanguageModel, VLMSpec
from lad_pl.data.permutations import random_permutations
from lad_pl.types import PermutedSample, Sample


def load(folder: Path, backend: str = "sdpa") -> VisionLanguageModel:
    return VisionLanguageModel.load(VLMSpec(str(folder), dtype="float32", attn_implementation=backend))


def edited(folder: Path, target: Path, change: Callable[[dict], None]) -> Path:
    """A copy of a checkpoint with another config."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def item(
    pictures: list[Image.Image], n: int, count: int, caption: str = "A dog lies on the grass.", index: int = 0
) -> PermutedSample:
    """The first n pictures under ``count`` permutations; the caption matches the last one."""
    sample = Sample(str(index), tuple(map(str, range(n))), caption, n - 1)
    return PermutedSample(sample, index, random_permutations(n, count), tuple(pictures[:n]))
