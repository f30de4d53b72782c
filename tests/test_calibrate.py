"""The calibration file: what a damaged one gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from paths import ROOT
from synthetic_run import synthetic_prompts

from lad_pl import UserError
from lad_pl.calibrate import calibrate, load_calibration, pack
from lad_pl.data.permutations import cyclic_shifts

OLD = ROOT / "tests" / "old_run" / "finished" / "calibration.ckpt"
"""Written before calibrations had a digest."""


@pytest.fixture(params=["with a digest", "without", "with the captions' rows"])
def calibration(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "calibration.ckpt"
    path.write_bytes(OLD.read_bytes())
    old, provenance = load_calibration(OLD)
    if request.param == "with a digest":
        torch.save({**torch.load(OLD, weights_only=True), **pack(old, provenance)}, path)
    elif request.param != "without":
        passes = synthetic_prompts(2, cyclic_shifts(4), 1, layers=3)
        made = calibrate(passes.evidence, passes.targets, passes.permutations, passes.sample_index)
        assert made.caption and made.both and made.diagnosis
        torch.save(pack(made, provenance), path)
    return path


def test_a_flipped_byte_never_changes_what_is_read(calibration: Path) -> None:
    expected, provenance = load_calibration(calibration)
    content, generator, refused = calibration.read_bytes(), random.Random(0), 0
    for _ in range(100):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= generator.randrange(1, 256)
        calibration.write_bytes(flipped)
        try:
            found, its_provenance = load_calibration(calibration)
        except UserError:
            refused += 1
        else:
            assert its_provenance == provenance
            assert pack(found, provenance)["digest"] == pack(expected, provenance)["digest"]
    assert refused > 50


@pytest.mark.parametrize("entry", ["attention_prior", "num_samples", "provenance"])
def test_values_that_are_not_those_written(calibration: Path, entry: str) -> None:
    """Whole archives, with valid checksums of their own, whose content was edited."""
    checkpoint = torch.load(calibration, weights_only=True)
    if entry == "provenance":
        checkpoint["provenance"]["layers"] = [1]
    else:
        checkpoint["calibration"][entry] += 1
    torch.save(checkpoint, calibration)
    if "digest" in checkpoint:
        with pytest.raises(UserError, match="is damaged"):
            load_calibration(calibration)


@pytest.mark.parametrize(
    "value",
    [torch.full((3, 4), torch.nan).double(), torch.zeros(2, 4).double(), torch.zeros(3, 4, dtype=torch.long), None],
)
def test_impossible_values(calibration: Path, value: torch.Tensor | None) -> None:
    checkpoint = torch.load(calibration, weights_only=True)
    checkpoint["calibration"]["attention_prior"] = value
    torch.save(checkpoint, calibration)
    with pytest.raises(UserError, match="is damaged"):
        load_calibration(calibration)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file" * 99])
def test_no_calibration_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a calibration.*run fit again"):
        load_calibration(path)
