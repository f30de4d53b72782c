"""A run that breaks off goes on where it stopped, and ends with the bytes of one that did not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import own_process
import pytest
from commands import QUIET, fails, noise_options, stops_after

from lad_pl.cli import main
from lad_pl.evidence.store import read_prompts
from lad_pl.run.folder import RunFolder

RESULTS = ("metrics.json", "predictions.jsonl")


@pytest.fixture(scope="module")
def base(tiny_folder: Path, fitted: Path) -> list[str]:
    own = ["--model.methods=[instruction]", "--data.num_permutations=2", "--data.batch_size=2"]
    return [*noise_options(tiny_folder, fitted), *own]


@pytest.fixture(scope="module")
def uninterrupted(base: list[str], fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(fitted / "run", tmp_path_factory.mktemp("runs") / "run")
    assert main(["test", *base, f"--trainer.default_root_dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize(("batches", "torn"), [(1, 0), (2, 1), (4, 40)])
def test_interrupted_test(base, fitted, uninterrupted, tmp_path, monkeypatch, batches: int, torn: int) -> None:
    """Of 3 batches in each of two methods; `torn`: bytes that never reached the disk."""
    shutil.copytree(fitted / "run", tmp_path / "run")
    options = [*base, f"--trainer.default_root_dir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        stops_after(patch, batches)
        with pytest.raises(RuntimeError, match="went down"):
            main(["test", *options])
    assert not (tmp_path / "run" / "metrics.json").exists()
    parts = sorted((tmp_path / "run").glob("*.parts-*/*"))
    assert len(parts) == (1 if batches <= 3 else 2)
    if torn:
        os.truncate(parts[0], parts[0].stat().st_size - torn)
    with monkeypatch.context() as patch:
        sizes = stops_after(patch, 100)
        assert main(["test", *options]) == 0
    assert len(sizes) == 6 - batches + (torn > 0)
    for name in RESULTS:
        assert (tmp_path / "run" / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert not list((tmp_path / "run").glob("*.parts-*"))


def test_interrupted_fit(base, uninterrupted, tmp_path, monkeypatch) -> None:
    options = [*base, f"--trainer.default_root_dir={tmp_path / 'run'}", "--data.batch_size=1"]
    with monkeypatch.context() as patch:
        stops_after(patch, 1)
        with pytest.raises(RuntimeError, match="went down"):
            main(["fit", *options])
    with monkeypatch.context() as patch:
        sizes = stops_after(patch, 100)
        assert main(["fit", *options]) == 0
    assert sizes == [3]
    assert main(["test", *options]) == 0
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (uninterrupted / "metrics.json").read_bytes()


def test_interrupted_predict(base, uninterrupted, tmp_path, monkeypatch) -> None:
    """Of 4 batches: predict takes the calibration samples as well."""
    calibration = f"--ckpt_path={uninterrupted / 'calibration.ckpt'}"
    whole, broken = ([*base, calibration, f"--trainer.default_root_dir={tmp_path / name}"] for name in ("a", "b"))
    assert main(["predict", *whole]) == 0
    with monkeypatch.context() as patch:
        stops_after(patch, 3)
        with pytest.raises(RuntimeError, match="went down"):
            main(["predict", *broken])
    with monkeypatch.context() as patch:
        sizes = stops_after(patch, 100)
        assert main(["predict", *broken]) == 0
    assert sizes == [4]
    assert (tmp_path / "b/predict_predictions.jsonl").read_bytes() == (
        tmp_path / "a/predict_predictions.jsonl"
    ).read_bytes()


def test_a_finished_run_needs_no_forward_pass(base, uninterrupted, monkeypatch) -> None:
    before = [(uninterrupted / name).read_bytes() for name in RESULTS]
    sizes = stops_after(monkeypatch, 100)
    for command in ("fit", "test"):
        assert main([command, *base, f"--trainer.default_root_dir={uninterrupted}"]) == 0
    assert sizes == []
    assert [(uninterrupted / name).read_bytes() for name in RESULTS] == before


def test_another_readout_replays_the_evidence(base, uninterrupted, tmp_path, monkeypatch, capsys) -> None:
    options = [*base, f"--trainer.default_root_dir={uninterrupted}", "--model.readout.temperature=1"]
    assert "readout.temperature: 5.0 there, 1.0 here" in fails(capsys, "test", *options)
    before = json.loads((uninterrupted / "predictions.jsonl").read_text().splitlines()[0])
    sizes = stops_after(monkeypatch, 100)
    assert main(["test", *options, "--model.overwrite=true"]) == 0
    after = json.loads((uninterrupted / "predictions.jsonl").read_text().splitlines()[0])
    assert sizes == []
    assert after["log_probs"] == before["log_probs"]
    assert after["scores"]["agd"] != before["scores"]["agd"]
    assert main(["test", *base, f"--trainer.default_root_dir={uninterrupted}", "--model.overwrite=true"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "ends"),
    [
        ("test", (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)),
        ("fit", (signal.SIGINT, signal.SIGTERM)),
        ("predict", (signal.SIGTERM, signal.SIGKILL)),
    ],
)
def test_a_process_stopped_again_and_again(
    demo_calibration: Path, tmp_path: Path, stage: str, ends: tuple[signal.Signals, ...]
) -> None:
    """The demo as a process of its own: each time it keeps what it computed, and prints how to go on."""
    options = [f"--trainer.default_root_dir={tmp_path}", *QUIET]
    if stage != "fit":
        shutil.copy(demo_calibration, tmp_path)
    # Ctrl-C reaches the data workers too.
    options += ["--data.num_calibration=150", "--data.num_workers=1"] if stage == "fit" else ["--data.num_test=150"]
    folder, kept = RunFolder(tmp_path), 0
    result = folder.calibration if stage == "fit" else folder.predictions(stage)
    for end in ends:
        process = own_process.start([stage, *options], tmp_path / "stderr")
        while process.is_alive() and stored_bytes(tmp_path) < kept + 12_000:
            time.sleep(0.02)
        os.killpg(process.pid, end) if end == signal.SIGINT else os.kill(process.pid, end)
        process.join(60)
        said = (tmp_path / "stderr").read_text()
        assert process.exitcode == {signal.SIGINT: 1, signal.SIGTERM: 143, signal.SIGKILL: -9}[end], said
        assert "Traceback" not in said
        assert ("Run the same command again to go on." in said) == (end != signal.SIGKILL)
        assert not result.exists()
        assert stored_bytes(tmp_path) >= kept + 12_000
        kept = stored_bytes(tmp_path)
    assert main([stage, *options]) == 0
    assert result.exists()
    assert read_prompts(folder.evidence(stage)).sample_index.unique().tolist() == list(range(150))


def stored_bytes(folder: Path) -> int:
    return sum(part.stat().st_size for part in folder.glob("*evidence.parquet.parts-*/*"))
