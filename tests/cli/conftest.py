"""A small run for the tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import noise_options, write_annotations


@pytest.fixture
def options(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """Options of a run that has not begun."""
    write_annotations(tmp_path / "data", 8)
    return [*noise_options(tiny_folder, tmp_path), "--data.num_permutations=4"]


@pytest.fixture
def fitted_run(fitted: Path, tiny_folder: Path, tmp_path: Path) -> list[str]:
    """Options of a run after fit."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    return [*noise_options(tiny_folder, tmp_path), "--data.num_permutations=4"]
