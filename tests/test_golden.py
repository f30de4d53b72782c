"""The published code's results, through the ordinary command line. All figures: float32, CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lad_pl.calibrate import load_calibration
from lad_pl.cli import main
from lad_pl.readouts import ReadoutSettings, log_bias, posterior
from lad_pl.types import Evidence


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def run(request: pytest.FixtureRequest, golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fit and test, as anybody would type them."""
    folder = tmp_path_factory.mktemp("golden") / "run"
    options = [
        f"--model.vlm.path={golden_folder / 'model'}",
        "--model.vlm.dtype=float32",
        f"--model.vlm.attn_implementation={request.param}",
        "--model.layers=[4,5,6,7]",
        "--model.readouts=[vanilla,pride_reference,purified_attention,agd]",
        f"--data.annotations={golden_folder / 'annotations_4_1_random.json'}",
        "--data.num_calibration=5",
        "--data.calibration_offset=0",
        "--data.allow_calibration_in_test=true",
        "--data.num_test=8",
        "--data.num_permutations=3",
        "--data.batch_size=3",
        f"--trainer.default_root_dir={folder}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["fit", *options]) == 0
    assert main(["test", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def golden(golden_folder: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden_folder / "expected_n4.npz"))


@pytest.fixture(scope="module")
def lines(run: Path) -> list[dict]:
    """Predictions in the golden order: permutation by permutation, sample by sample."""
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    return [rows[sample * 3 + t] for t in range(3) for sample in range(8)]


def column(lines: list[dict], name: str, *tail: int) -> np.ndarray:
    return np.array([line[name] for line in lines]).reshape(3, 8, *tail)


def test_permutations_and_targets(lines: list[dict], golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(column(lines, "permutation", 4)[:, 0], golden["shuffles"])
    np.testing.assert_array_equal(column(lines, "target") + 1, golden["gt"])


def test_attention_mass_within_1e_5(lines: list[dict], golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(column(lines, "attention", 4, 4), golden["layer"], atol=1e-5)


def test_log_probabilities_within_1e_3_up_to_a_constant(lines: list[dict], golden: dict[str, np.ndarray]) -> None:
    difference = column(lines, "log_probs", 4) - golden["joint"]
    assert np.ptp(difference, axis=-1).max() < 1e-3


def test_calibration(run: Path, golden: dict[str, np.ndarray]) -> None:
    calibration, provenance = load_calibration(run / "calibration.ckpt")
    assert provenance["layers"] == golden["layers"].tolist()
    np.testing.assert_allclose(calibration.attention_prior, golden["attention_prior"], atol=1e-5)
    # The published code averages raw logits: every row is off by a constant of its own, on which nothing depends.
    ours, theirs = log_bias(calibration, "reference").numpy(), golden["bias_matrix"]
    centred = [matrix - matrix.mean(1, keepdims=True) for matrix in (ours, theirs)]
    np.testing.assert_allclose(*centred, atol=1e-3)


def test_posterior_within_1e_3(run: Path, lines: list[dict], golden: dict[str, np.ndarray]) -> None:
    calibration, _ = load_calibration(run / "calibration.ckpt")
    attention = torch.tensor([line["attention"] for line in lines], dtype=torch.float64)[:, :, None]
    evidence = Evidence.from_heads(torch.zeros(24, 4), attention)
    pi = posterior(evidence, calibration, ReadoutSettings()).reshape(3, 8, 4)
    np.testing.assert_allclose(pi, golden["pi"], atol=1e-3)


@pytest.mark.parametrize(("readout", "expected"), [("agd", "pred_agd"), ("pride_reference", "pred_pride")])
def test_every_decision(lines: list[dict], golden: dict[str, np.ndarray], readout: str, expected: str) -> None:
    choices = np.array([line["choices"][readout] for line in lines]).reshape(3, 8)
    np.testing.assert_array_equal(choices + 1, golden[expected])
