"""Stages of one loaded module."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import stops_after
from stages import Run

from lad_pl import AttentionGuidedDebiasing, PromptSpec, VLMSpec


@pytest.fixture(scope="session")
def module(tiny_folder: Path) -> AttentionGuidedDebiasing:
    """Loaded once for all of these."""
    vlm = VLMSpec(str(tiny_folder), dtype="float32")
    return AttentionGuidedDebiasing(vlm, PromptSpec(image_size=84), layers="2-5")


@pytest.fixture
def run(module, fitted: Path, tmp_path: Path, monkeypatch) -> Run:
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    module.calibration = None  # that of the run folder
    return Run(module, tmp_path / "run", stops_after(monkeypatch, 1000))
