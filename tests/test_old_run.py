"""Run folders of version 0.1.0 are read, reported, taken up and gone on with (tests/old_run).

Both were written by the demo model on 4 samples under 3 permutations; `interrupted` by ``--data.batch_size 2
--trainer.limit_test_batches 1``, so that it holds half of the evidence of each method.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import QUIET
from paths import ROOT
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from lad_pl.analysis.stored_run import StoredRun
from lad_pl.calibrate import load_calibration
from lad_pl.cli import main
from lad_pl.evidence import read_prompts

OLD = ROOT / "tests" / "old_run"
EVIDENCE = ("", "-permutation_average", "-contextual", "-cot")
OPTIONS = [
    "--data.num_test=4",
    "--data.num_permutations=3",
    "--model.methods=[permutation_average,contextual_calibration,cot]",
    "--model.method.thought_tokens=4",
    *QUIET,
]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return shutil.copytree(OLD / "finished", tmp_path / "run")


def readouts(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["readouts"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_every_file_reads() -> None:
    folder = OLD / "finished"
    tables = {name: read_prompts(folder / f"evidence{name}.parquet") for name in EVIDENCE}
    assert [len(table) for table in tables.values()] == [12, 4 * 12, 12, 12]
    assert tables[""].evidence.attention.shape[::3] == (12, 4)
    texts = tables["-cot"].texts
    assert texts is not None and all(len(chains) == 1 for chains in texts)
    assert len(read_prompts(folder / "calibration_evidence.parquet")) == 20  # 5 samples under 4 cyclic shifts
    calibration, provenance = load_calibration(folder / "calibration.ckpt")
    assert calibration.num_samples == provenance["num_samples"] == 5
    run = StoredRun(folder)
    np.testing.assert_array_equal(run.calibration.attention_prior, calibration.attention_prior)
    assert run.costs["methods"]["permutation_average"]["forwards"] == 4
    assert [record["id"] for record in run.records()] == list(run.prompts().ids)
    assert list(run.records()[0]["choices"]) == list(run.report["readouts"])


@pytest.mark.parametrize(
    ("command", "options", "written"),
    [
        ("report", [], "report/index.html"),
        ("sweep", ["--readouts=[vanilla,agd]", "--temperature=[1,5]", "--plots=false"], "sweep/sweep.csv"),
        ("compare", ["--readouts=[vanilla,agd,permutation_average,cot]", "--out=run/compare.md"], "compare.md"),
    ],
)
def test_it_is_analysed(
    finished: Path, command: str, options: list[str], written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parent)
    assert main([command, "run", *options]) == 0
    assert "agd" in (finished / written).read_text()


def test_the_same_test_again_needs_no_forward_pass(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model computes what the run folder already holds")

    for part in (qwen.Qwen2_5_VisionTransformerPretrainedModel, qwen.Qwen2_5_VLTextModel):
        monkeypatch.setattr(part, "forward", forward)
    before = files(finished)
    for command in ("fit", "test"):
        assert main([command, *OPTIONS, f"--trainer.default_root_dir={finished}"]) == 0
    after = files(finished)
    assert before.keys() == after.keys()
    for name in ("predictions.jsonl", *(name for name in before if name.endswith(".parquet"))):
        assert after[name] == before[name], name
    assert readouts(finished) == readouts(OLD / "finished")
    ours, theirs = (load_calibration(folder / "calibration.ckpt")[0] for folder in (finished, OLD / "finished"))
    for name, values in theirs.state().items():
        torch.testing.assert_close(ours.state()[name], values, rtol=0, atol=0)


def test_its_calibration_is_taken_in_another_folder(tmp_path: Path) -> None:
    calibration = OLD / "finished" / "calibration.ckpt"
    options = [*OPTIONS, f"--ckpt_path={calibration}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["test", *options]) == 0
    check_evidence(tmp_path)


def test_an_interrupted_test_goes_on(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / "interrupted", tmp_path / "run")
    shutil.copy(OLD / "finished" / "calibration.ckpt", folder)
    assert main(["test", *OPTIONS, f"--trainer.default_root_dir={folder}"]) == 0
    check_evidence(folder)
    assert not list(folder.glob("*.parts-*"))
    for part in (OLD / "interrupted").glob("*/*.arrows"):
        (seconds,) = set(pa.ipc.open_stream(part.read_bytes()).read_all()["seconds"].to_pylist())
        ours = read_prompts(folder / part.parent.name.partition(".parts-")[0])
        assert (ours.seconds == seconds).double().mean() == 0.5  # taken over, not computed anew


def check_evidence(folder: Path) -> None:
    """That of the old version's own run, by whichever batches it was computed."""
    for name in EVIDENCE:
        ours, theirs = (read_prompts(path / f"evidence{name}.parquet") for path in (folder, OLD / "finished"))
        assert (ours.ids, ours.texts) == (theirs.ids, theirs.texts)
        np.testing.assert_array_equal(ours.targets, theirs.targets)
        np.testing.assert_array_equal(ours.permutations, theirs.permutations)
        np.testing.assert_allclose(ours.evidence.log_probs, theirs.evidence.log_probs, atol=1e-4)
        np.testing.assert_allclose(ours.evidence.attention, theirs.evidence.attention, atol=1e-4)
    assert readouts(folder) == readouts(OLD / "finished")
