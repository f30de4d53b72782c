"""The same numbers on one process and on two (gloo, CPU), uneven shares and processes without a sample included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import QUIET, write_annotations

from lad_pl.checkpoint import load_calibration
from lad_pl.cli import main


def lad_pl(command: str, *options: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "lad_pl", command, *options],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("num_calibration", "num_test"), [(3, 5), (1, 1)])
def test_two_processes_equal_one(tiny_folder: Path, tmp_path: Path, num_calibration: int, num_test: int) -> None:
    (tmp_path / "data").mkdir()
    options = [
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=84",
        f"--data.annotations={write_annotations(tmp_path / 'data', 8)}",
        f"--data.num_calibration={num_calibration}",
        f"--data.num_test={num_test}",
        *QUIET,
    ]
    for command in ("fit", "test"):
        assert main([command, *options, f"--trainer.default_root_dir={tmp_path / 'one'}"]) == 0
        two_devices = ["--trainer.devices=2", "--trainer.strategy=ddp"]
        lad_pl(command, *options, *two_devices, f"--trainer.default_root_dir={tmp_path / 'two'}")
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = (load_calibration(folder / "calibration.ckpt")[0].state() for folder in (one, two))
    for field, value in first.items():
        torch.testing.assert_close(torch.as_tensor(second[field]), torch.as_tensor(value), atol=1e-6, rtol=0)
    assert first["num_samples"] == second["num_samples"] == num_calibration
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert metrics[0] == metrics[1]
    rows = [[json.loads(line) for line in (folder / "predictions.jsonl").open()] for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 5 * num_test
    for left, right in zip(*rows, strict=True):
        assert left["id"] == right["id"]
        assert left["permutation"] == right["permutation"]
        np.testing.assert_allclose(left["log_probs"], right["log_probs"], atol=1e-6)
    assert not list(two.glob("*.part"))
