"""Running commands in this process, and small inputs for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_vlm import write_noise_images

from lad_pl.calibrate import load_calibration
from lad_pl.cli import main
from lad_pl.evidence.store import read_prompts
from lad_pl.vlm import VisionLanguageModel

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def write_annotations(folder: Path, count: int, n: int = 3, **changes: object) -> Path:
    """Noise images in `folder`, and samples over them."""
    names = [path.name for path in write_noise_images(folder, n + count, sizes=((60, 90), (90, 60)))]
    samples = [
        {"id": i, "image_ids": names[i : i + n], "index": i % n, "caption": f"Noise number {i}", **changes}
        for i in range(count)
    ]
    path = folder / "annotations.json"
    path.write_text(json.dumps(samples))
    return path


def noise_options(model: Path, folder: Path) -> list[str]:
    """A tiny model, the samples in `data` of the folder, two of them for calibration, and its run folder `run`."""
    return [
        f"--model.vlm.path={model}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=84",
        "--model.layers=2-5",
        f"--data.annotations={folder / 'data' / 'annotations.json'}",
        "--data.num_calibration=2",
        f"--trainer.default_root_dir={folder / 'run'}",
        *QUIET,
    ]


def run(command: str, *options: str) -> int:
    return main([command, *options])


def fails(capsys: pytest.CaptureFixture[str], command: str, *options: str) -> str:
    """Run a command that must end with exit code 2 and one line on stderr; returns the line."""
    capsys.readouterr()
    assert main([command, *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line and line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("lad_pl: ")
    return lines[0]


def stops_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> list[int]:
    """Let the model fail after so many batches; returns the sizes of those that it does."""
    sound, sizes = VisionLanguageModel.evidence, []

    def evidence(self, batch, *arguments):
        if len(sizes) == batches:
            raise RuntimeError("the machine went down")
        sizes.append(len(batch))
        return sound(self, batch, *arguments)

    monkeypatch.setattr(VisionLanguageModel, "evidence", evidence)
    return sizes


DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def check_equal(run: Path, reference: Path, tolerance: float) -> None:
    """Calibration, metrics, predictions and evidence."""
    first, second = (load_calibration(path / "calibration.ckpt")[0] for path in (reference, run))
    for of_rows in ("last", "caption", "both"):
        theirs, ours = (calibration.of_rows(of_rows).state() for calibration in (first, second))
        for field in {*theirs} - {"diagnosis", "caption", "both"}:
            # Heads are stored in half precision, and a last digit may round the other way.
            within = tolerance if of_rows == "last" else max(tolerance, 1e-3)
            torch.testing.assert_close(ours[field], theirs[field], atol=within, rtol=0)
        for name, figures in theirs["diagnosis"].items():
            expected = pytest.approx(figures, abs=10 * tolerance) if isinstance(figures, dict) else figures
            assert ours["diagnosis"][name] == expected
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (reference, run)]
    assert metrics[0] == metrics[1]
    rows = [[json.loads(line) for line in (path / "predictions.jsonl").open()] for path in (reference, run)]
    assert len(rows[0]) == len(rows[1]) == 3 * metrics[0]["num_samples"]
    for theirs, ours in zip(*rows, strict=True):
        assert (theirs["id"], theirs["permutation"]) == (ours["id"], ours["permutation"])
        np.testing.assert_allclose(theirs["log_probs"], ours["log_probs"], atol=tolerance)
    assert (run / "evidence.parquet").exists()
    for path in sorted(run.glob("*evidence*.parquet")):
        ours, theirs = read_prompts(reference / path.name), read_prompts(path)
        torch.testing.assert_close(
            theirs.evidence.attention, ours.evidence.attention, atol=tolerance, rtol=2e-3
        )  # half precision
        assert theirs.texts == ours.texts
        assert torch.equal(theirs.forwards, ours.forwards)
    assert not list(run.glob("*part*"))
