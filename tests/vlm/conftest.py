"""Fixtures of the adapter's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import gemma3
from PIL import Image
from tiny_vlm import write_noise_images


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    sizes = ((60, 90), (90, 60), (56, 56), (120, 40))
    paths = write_noise_images(tmp_path_factory.mktemp("images"), 26, sizes=sizes)
    return [Image.open(path).convert("RGB") for path in paths]


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3, with sliding-window layers."""
    return gemma3.build(tmp_path_factory.mktemp("gemma3") / "model")
