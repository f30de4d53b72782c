"""A small run for the tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import QUIET, run, write_annotations


def options_of(folder: Path, model: Path) -> list[str]:
    """A model, eight samples of three images, a run folder."""
    return [
        f"--model.vlm.path={model}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=84",
        "--model.layers=2-5",
        f"--data.annotations={folder / 'data' / 'annotations.json'}",
        "--data.num_calibration=2",
        "--data.num_permutations=4",
        f"--trainer.default_root_dir={folder / 'run'}",
        *QUIET,
    ]


@pytest.fixture
def options(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """Options of a run that has not begun."""
    (tmp_path / "data").mkdir()
    write_annotations(tmp_path / "data", 8)
    return options_of(tmp_path, tiny_folder)


@pytest.fixture(scope="session")
def fitted_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and run folder after fit; tests get copies."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "data").mkdir()
    write_annotations(folder / "data", 8)
    assert run("fit", *options_of(folder, tiny_folder)) == 0
    return folder


@pytest.fixture
def fitted(fitted_folder: Path, tiny_folder: Path, tmp_path: Path) -> list[str]:
    """Options of a run after fit."""
    shutil.copytree(fitted_folder, tmp_path, dirs_exist_ok=True)
    return options_of(tmp_path, tiny_folder)
