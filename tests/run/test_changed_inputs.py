"""Stored evidence is of the pictures themselves, and of the calibration that was used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import fails, noise_options
from PIL import Image

from lad_pl import UserError
from lad_pl.analysis.stored_run import StoredRun
from lad_pl.cli import main


@pytest.fixture
def options(tiny_folder: Path, fitted: Path, tmp_path: Path) -> list[str]:
    """After fit on two samples."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    return [*noise_options(tiny_folder, tmp_path), "--data.num_permutations=2"]


def test_other_pictures_under_the_same_names(options: list[str], tmp_path: Path, capsys) -> None:
    assert main(["test", *options]) == 0
    before = (tmp_path / "run" / "predictions.jsonl").read_text()
    sample = json.loads((tmp_path / "data" / "annotations.json").read_text())[4]
    path = tmp_path / "data" / sample["image_ids"][0]
    with Image.open(path) as image:
        image.rotate(180).save(path)
    assert "results of another configuration (image files have changed since)" in fails(capsys, "test", *options)
    assert main(["test", *options, "--model.overwrite=true"]) == 0
    assert (tmp_path / "run" / "predictions.jsonl").read_text() != before


def test_a_calibration_made_anew_since(options: list[str], tmp_path: Path) -> None:
    assert main(["test", *options]) == 0
    assert StoredRun(tmp_path / "run").calibration.num_samples == 2
    assert main(["fit", *options, "--data.num_calibration=1", "--model.overwrite=true"]) == 0
    with pytest.raises(UserError, match="has been made on other samples since test used it"):
        _ = StoredRun(tmp_path / "run").calibration


def test_predicting_takes_no_method_with_it(options: list[str], tmp_path: Path, capsys) -> None:
    options = [*options, "--model.methods=[instruction]"]
    assert main(["test", *options]) == 0
    assert "of another configuration" in fails(capsys, "predict", *options)
    assert "data.num_calibration is 0" in fails(capsys, "fit", *options, "--data.num_calibration=0")
