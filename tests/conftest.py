"""Fixtures shared by the tests. Nothing here reaches a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else

from pathlib import Path

import pytest
import torch
from tiny_vlm import build_tiny_qwen

from lad_pl import PromptSpec, VisionLanguageModel, VLMSpec

SHARED = Path(__file__).parents[1].parent / "shared"
torch.set_num_threads(1)  # the models are tiny


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    folder = SHARED / "golden" / "agd_reference"
    if not folder.is_dir():
        pytest.skip("the published code's golden results (../shared/golden) are not here")
    return folder


@pytest.fixture(scope="session")
def photos_folder() -> Path:
    folder = SHARED / "photos"
    if not folder.is_dir():
        pytest.skip("the photographs (../shared/photos) are not here")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2.5-VL checkpoint of 6 layers."""
    return build_tiny_qwen(tmp_path_factory.mktemp("models") / "tiny-qwen", seed=1)


@pytest.fixture(scope="session")
def tiny_vlm(tiny_folder: Path) -> VisionLanguageModel:
    return VisionLanguageModel.load(VLMSpec(str(tiny_folder), dtype="float32"))


@pytest.fixture(scope="session")
def small_prompt() -> PromptSpec:
    """Images as they are: of different size."""
    return PromptSpec(image_size=None)
