"""A readout that a user registers works in every analysis, and is missed where it is not registered."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from synthetic_run import synthetic_run

from lad_pl.analysis.compare import compare
from lad_pl.analysis.report.command import report
from lad_pl.analysis.report.reported_run import read_run
from lad_pl.analysis.sweep.command import sweep
from lad_pl.readouts import READOUTS

REPORTED = ("vanilla", "agd")


@pytest.fixture
def run(tmp_path: Path, own_readouts: tuple[str, ...]) -> Path:
    return synthetic_run(tmp_path / "run", samples=12, readouts=(*REPORTED, *own_readouts))


def test_sweep_varies_what_it_depends_on(run: Path, own_readouts: tuple[str, ...]) -> None:
    results = sweep(run, draws=2)
    metrics = json.loads((run / "metrics.json").read_text())["readouts"]
    for name in own_readouts:
        settings = [result.setting for result in results if result.setting.readout == name]
        assert len({setting.layers for setting in settings}) > 3
        assert (len({setting.temperature for setting in settings}) > 3) == (name == "half_half")
        assert any(result.scores["accuracy"] == metrics[name]["accuracy"] for result in results)
    assert (run / "sweep" / "accuracy_over_layers.png").is_file()
    assert {row["readout"] for row in csv.DictReader((run / "sweep/sweep.csv").open())} >= set(own_readouts)


def test_report_and_compare_show_it(run: Path, own_readouts: tuple[str, ...]) -> None:
    report([run], gallery=2)
    assert all(name in (run / "report" / "index.html").read_text() for name in own_readouts)
    claims = read_run(run).calibrated_probabilities
    assert "half_half" in claims and "mean_attention" not in claims
    assert [method.name for method in compare([run], ["vanilla", *own_readouts], draws=50).methods] == [*own_readouts]


def test_where_it_is_not_registered_sweep_leaves_it_out_and_says_so(
    run: Path, own_readouts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in own_readouts:
        del READOUTS[name]
    results = sweep(run, top_layers=1, plots=False)
    assert {result.setting.readout for result in results} == set(REPORTED)
    assert "registers such a readout: half_half, mean_attention" in capsys.readouterr().out
    report([run], gallery=0)
