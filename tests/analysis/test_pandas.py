"""The files of a run folder open in pandas in one line each, as the README has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_run import synthetic_run

from lad_pl.analysis.stored_run import StoredRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs") / "demo", samples=30)


def test_recall_by_position_in_one_line(run: Path) -> None:
    p = pd.read_json(run / "predictions.jsonl", lines=True, dtype={"id": str})
    vanilla = p["choices"].str["vanilla"].eq(p["target"]).groupby(p["target"]).mean()
    stored = json.loads((run / "metrics.json").read_text())["readouts"]["vanilla"]
    assert vanilla.tolist() == pytest.approx(stored["recall_by_position"])


def test_choices_and_consistency(run: Path) -> None:
    p = pd.read_json(run / "predictions.jsonl", lines=True, dtype={"id": str})
    choices = pd.json_normalize(p["choices"].tolist())
    metrics = pd.DataFrame(json.loads((run / "metrics.json").read_text())["readouts"]).T
    assert choices.eq(p["target"], axis=0).mean().to_dict() == pytest.approx(metrics["accuracy"].to_dict())
    image = [order[position] for order, position in zip(p["permutation"], choices["agd"], strict=True)]
    assert p.assign(image=image).groupby("id")["image"].nunique().eq(1).mean() == pytest.approx(
        metrics.loc["agd", "consistency"]
    )


@pytest.mark.parametrize("name", ["evidence", "calibration_evidence"])
def test_evidence_is_a_table(run: Path, name: str) -> None:
    e = pd.read_parquet(run / f"{name}.parquet")
    stored = StoredRun(run)
    prompts = stored.prompts() if name == "evidence" else stored.calibration_prompts()
    shape = prompts.evidence.attention.shape
    assert len(e) == len(prompts)
    assert np.stack(e["log_probs"].to_list()) == pytest.approx(prompts.evidence.log_probs.numpy())
    assert e["target"].tolist() == prompts.targets.tolist()
    roots = np.stack(e["head_attention_sqrt"].to_list())
    assert roots.dtype == np.float16
    heads = roots.astype(float).reshape(shape) ** 2
    assert heads == pytest.approx(prompts.evidence.attention.numpy())
    layers = np.stack(e["attention"].to_list()).reshape(shape[0], shape[1], shape[3])
    assert layers == pytest.approx(prompts.evidence.layer_attention.numpy())


def test_how_often_the_most_attended_image_is_the_correct_one(run: Path) -> None:
    e = pd.read_parquet(run / "evidence.parquet")
    n = len(e["permutation"][0])
    seen = e["attention"].map(lambda mass: mass.reshape(-1, n).mean(0).argmax()).eq(e["target"]).mean()
    attention = StoredRun(run).prompts(heads=False).evidence.layer_attention.mean(1).argmax(-1)
    assert seen == pytest.approx(float((attention == StoredRun(run).prompts(heads=False).targets).double().mean()))
    assert seen > 1 / n
