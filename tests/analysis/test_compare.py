"""Two runs side by side, on made-up run folders."""

from __future__ import annotations

import csv
import json
import shutil
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import synthetic_run

from lad_pl import ReadoutSettings, UserError
from lad_pl.analysis.compare import compare
from lad_pl.analysis.table import points
from lad_pl.cli.commands import run_command

Record = dict[str, Any]
DRAWS = 300  # enough where the interval itself is not what is tested


@pytest.fixture(scope="module")
def run_a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs") / "a", samples=40)


@pytest.fixture(scope="module")
def run_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prompts, corrected by other rules, and a method more."""
    folder = tmp_path_factory.mktemp("runs") / "b"
    settings = ReadoutSettings(recipe="paper", top_layers=3)
    return synthetic_run(folder, samples=40, readout=settings, methods=("permutation_average",))


@pytest.fixture
def changed(run_a: Path, tmp_path: Path) -> Callable[[Callable[[list[Record]], list[Record]]], Path]:
    """A copy of run A with other predictions."""

    def change(edit: Callable[[list[Record]], list[Record]]) -> Path:
        copy = tmp_path / "changed"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run_a, copy)
        lines = [json.dumps(record) + "\n" for record in edit(records_of(run_a))]
        (copy / "predictions.jsonl").write_text("".join(lines))
        return copy

    return change


def records_of(run: Path) -> list[Record]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def stored(run: Path, readout: str) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())["readouts"][readout]


# ------------------------------------------------------------------------------------------------------------ two runs


def test_two_runs_are_compared_readout_by_readout(run_a: Path, run_b: Path) -> None:
    comparison = compare([run_a, run_b], draws=DRAWS)
    assert (comparison.num_samples, comparison.num_permutations) == (40, 5)
    assert [method.name for method in comparison.methods] == list(records_of(run_a)[0]["choices"])
    pairs = list(zip(records_of(run_a), records_of(run_b), strict=True))
    differing = 0
    for method in comparison.methods:
        for name in ("accuracy", "rstd", "consistency"):
            paired = getattr(method, name)
            assert paired.a == pytest.approx(stored(run_a, method.name)[name])
            assert paired.b == pytest.approx(stored(run_b, method.name)[name])
            assert paired.difference.mean == pytest.approx(paired.b - paired.a)
            assert paired.difference.low <= paired.difference.mean <= paired.difference.high
        correct = [tuple(r["choices"][method.name] == r["target"] for r in pair) for pair in pairs]
        assert (method.worse, method.better) == (correct.count((True, False)), correct.count((False, True)))
        differing += method.worse + method.better
    assert differing > 10
    assert comparison.settings == {
        "readout.recipe": ("reference", "paper"),
        "readout.top_layers": (2, 3),
        "methods": ([], ["permutation_average"]),
    }


def test_the_other_way_round_is_the_negative(run_a: Path, run_b: Path) -> None:
    there = compare([run_a, run_b], ["agd"], draws=DRAWS).methods[0]
    back = compare([run_b, run_a], ["agd"], draws=DRAWS).methods[0]
    assert (there.worse, there.better) == (back.better, back.worse)
    for name in ("accuracy", "rstd", "consistency"):
        assert getattr(there, name).difference.mean == pytest.approx(-getattr(back, name).difference.mean)


def test_a_run_does_not_differ_from_itself(run_a: Path) -> None:
    comparison = compare([run_a, run_a], draws=DRAWS)
    assert comparison.settings == {}
    for method in comparison.methods:
        for paired in (method.accuracy, method.rstd, method.consistency):
            assert (paired.difference.mean, paired.difference.low, paired.difference.high) == (0, 0, 0)
            assert paired.difference.p == 1
        assert method.flips_p == 1


def test_prompts_are_matched_by_what_was_shown(run_a: Path, run_b: Path, changed) -> None:
    """Lines in another order, and annotations that list the same images in another order."""

    def relisted(records: list[Record]) -> list[Record]:
        for record in records:
            record["images"] = record["images"][::-1]
            record["permutation"] = [len(record["images"]) - 1 - index for index in record["permutation"]]
        return records[::-1]

    expected = compare([run_b, run_a], draws=DRAWS)
    assert compare([run_b, changed(relisted)], draws=DRAWS).methods == expected.methods


def test_runs_that_share_part_of_their_prompts(run_a: Path, run_b: Path, changed) -> None:
    some = changed(lambda records: records[:150])
    with pytest.raises(UserError, match=r"share 150 prompts of 200 and 150, and 30 whole samples of 40 and 30; .*true"):
        compare([run_b, some])
    assert compare([run_b, some], shared=True, draws=DRAWS).num_samples == 30

    def reworded(records: list[Record]) -> list[Record]:
        return [{**record, "caption": "another"} if number < 5 else record for number, record in enumerate(records)]

    with pytest.raises(UserError, match="share 195 prompts of 200 and 200, and 39 whole samples of 40 and 40"):
        compare([run_b, changed(reworded)])


def test_runs_that_cannot_be_compared(run_a: Path, changed, tmp_path: Path) -> None:
    fewer = changed(lambda records: [record for number, record in enumerate(records) if number % 5 < 3])
    with pytest.raises(UserError, match=r"share 120 prompts of 200 and 120, and 0 whole .* data.permutation_seed"):
        compare([run_a, fewer], shared=True)
    with pytest.raises(UserError, match="share no prompt"):
        compare([run_a, changed(lambda records: [{**record, "id": "x" + record["id"]} for record in records])])
    with pytest.raises(UserError, match=r"Sample test-0: .* do not agree which image is correct"):
        compare([run_a, changed(lambda records: [{**records[0], "target": 3 - records[0]["target"]}, *records[1:]])])
    with pytest.raises(UserError, match="without known correct answers"):
        compare([run_a, changed(lambda records: [{**record, "target": None} for record in records])])
    with pytest.raises(UserError, match="holds no predictions"):
        compare([run_a, changed(lambda records: [])])
    with pytest.raises(UserError, match="run test"):
        compare([run_a, tmp_path / "nothing"])
    with pytest.raises(UserError, match="one or two run folders, not 3"):
        compare([run_a, run_a, run_a])


def test_an_unreadable_answer_is_wrong_and_no_image(run_a: Path, changed) -> None:
    """Sample 0's answers all become unreadable: it cannot be correct, nor consistent."""

    def muted(records: list[Record]) -> list[Record]:
        for record in records[:5]:
            record["choices"]["head_information"] = None
        return records

    method = compare([run_a, changed(muted)], ["head_information"], draws=DRAWS).methods[0]
    lost = [record["choices"]["head_information"] == record["target"] for record in records_of(run_a)[:5]]
    assert all(lost)
    assert (method.worse, method.better) == (5, 0)
    assert method.accuracy.difference.mean == pytest.approx(-5 / 200)
    assert method.consistency.difference.mean == pytest.approx(-1 / 40)


# ------------------------------------------------------------------------------------------------------- within a run


def test_readouts_of_one_run(run_a: Path) -> None:
    comparison = compare([run_a], ["vanilla", "agd", "head_information"], draws=DRAWS)
    assert comparison.a == "vanilla"
    assert [method.name for method in comparison.methods] == ["agd", "head_information"]
    for method in comparison.methods:
        assert method.accuracy.a == pytest.approx(stored(run_a, "vanilla")["accuracy"])
        assert method.accuracy.b == pytest.approx(stored(run_a, method.name)["accuracy"])
        assert method.accuracy.difference.low > 0 and method.accuracy.difference.p < 0.02 and method.flips_p < 0.001
    assert compare([run_a], draws=DRAWS).methods[-1] == comparison.methods[-1]  # all there are, against the first
    with pytest.raises(UserError, match="by two readouts or more"):
        compare([run_a], ["agd"])
    with pytest.raises(UserError, match=r"has no 'adg'; it has vanilla, pride, .*head_information"):
        compare([run_a], ["vanilla", "adg"])


# -------------------------------------------------------------------------------------------------------- command line


def test_the_command_prints_and_writes(run_a: Path, run_b: Path, tmp_path: Path, capsys) -> None:
    expected = compare([run_a, run_b], ["agd", "purified_attention"], draws=DRAWS)
    capsys.readouterr()
    for ending in ("json", "csv", "md", "tex"):
        out = tmp_path / f"comparison.{ending}"
        options = ["--readouts", "[agd, purified_attention]", "--draws", str(DRAWS), "--out", str(out)]
        run_command("compare", [str(run_a), str(run_b), *options])
        assert f"Comparison: {out}" in capsys.readouterr().out.replace("\n", "").replace(
            "Comparison:/", "Comparison: /"
        )
    run_command("compare", [str(run_a), str(run_b), "--draws", str(DRAWS)])
    printed = capsys.readouterr().out
    assert 'readout.recipe: A "reference", B "paper"' in printed
    agd = expected.methods[0]
    shown = f"{100 * agd.accuracy.a:.1f}", f"{100 * agd.accuracy.b:.1f}", points(agd.accuracy.difference.mean)
    assert any(line.split()[:4] == ["agd", *shown] for line in printed.splitlines())
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["readouts"] == [method.record() for method in expected.methods]
    assert written["settings"]["readout.top_layers"] == {"a": 2, "b": 3}
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["accuracy_difference"]) == pytest.approx(agd.accuracy.difference.mean)
    assert rows[1]["readout"] == "purified_attention"
    assert "| agd | " + " | ".join(shown[:2]) in (tmp_path / "comparison.md").read_text()
    assert r"purified\_attention" in (tmp_path / "comparison.tex").read_text()


def test_mistakes_on_the_command_line(run_a: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in none of .md, .csv, .tex, .json"):
        run_command("compare", [str(run_a), "--out", str(tmp_path / "table.xlsx")])
    with pytest.raises(UserError, match="stage is 'fit'"):
        run_command("compare", [str(run_a), "--stage", "fit"])
    with pytest.raises(UserError, match="draws is 0"):
        run_command("compare", [str(run_a), "--draws", "0"])
    with pytest.raises(ArgumentError, match="runs"):
        run_command("compare", [])
    with pytest.raises(ArgumentError, match="reedouts"):
        run_command("compare", [str(run_a), "--reedouts", "[agd]"])
