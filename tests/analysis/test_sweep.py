"""``sweep``: every setting equals calibrating and reading out by itself; subsets, tables, plots, mistakes."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_run import synthetic_run

from lad_pl.analysis.plot_style import style
from lad_pl.analysis.stored_run import StoredRun
from lad_pl.analysis.sweep import evaluate
from lad_pl.analysis.sweep.calibration_subsets import (
    Calibrations,
    CalibrationSubset,
    all_layers,
    draw_subsets,
    layer_sets,
)
from lad_pl.analysis.sweep.command import sweep as sweep_with_plots
from lad_pl.analysis.sweep.evaluate import SCORED, Evaluation, score
from lad_pl.analysis.sweep.plots import make_plots
from lad_pl.analysis.sweep.results import Summary, SweptRun
from lad_pl.analysis.sweep.settings_grid import Setting, Stored, factors_of, make_grid, product
from lad_pl.calibrate import calibrate
from lad_pl.cli.commands import run_command
from lad_pl.errors import UserError
from lad_pl.readouts import READOUTS, ReadoutSettings, head_score, head_weights
from lad_pl.run.scoring import metrics_of, with_batch_prior
from lad_pl.types import Evidence

sweep = partial(sweep_with_plots, plots=False)  # these take a second each
STORED_LAYERS = (21, 22, 23, 24, 25)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # So unclear that the heads' votes on the targets depend on the layers that vote.
    return synthetic_run(tmp_path_factory.mktemp("sweep") / "my $run", samples=20, clarity=0.1)


@pytest.fixture(scope="module")
def run(run_folder: Path) -> StoredRun:
    return StoredRun(run_folder)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------------------------------- arithmetic


def by_itself(
    run: StoredRun, readout: str, values: dict, subset: CalibrationSubset, settings: ReadoutSettings
) -> torch.Tensor:
    """Scores as lad_pl has them when only these layers are captured and only these samples calibrated on."""
    passes, prompts, places = run.calibration_prompts(), run.prompts(), list(values["layers"].indices)

    def on_layers(evidence: Evidence) -> Evidence:
        captions = evidence.caption_attention
        masses = (evidence.attention, evidence.layer_attention, captions)
        return Evidence(evidence.log_probs, *(None if mass is None else mass[:, places] for mass in masses))

    rows = torch.isin(passes.sample_index, passes.sample_index.unique()[list(subset.samples)])
    calibration = calibrate(
        on_layers(passes.evidence[rows]), passes.targets[rows], passes.permutations[rows], passes.sample_index[rows]
    )
    calibration = with_batch_prior(prompts, calibration, settings)
    return READOUTS[readout](on_layers(prompts.evidence), calibration, settings)


@pytest.mark.parametrize(
    ("readout", "batch"),
    [
        *((name, "calibration") for name in (*READOUTS, "half_half", "mean_attention")),
        ("batch_calibration", "test"),
        ("half_half", "test"),
    ],
)
@pytest.mark.usefixtures("own_readouts")
def test_every_setting_equals_calibrating_and_reading_out_by_itself(
    run: StoredRun, readout: str, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "PROMPTS_AT_A_TIME", 37)
    monkeypatch.setattr(evaluate, "_WEIGHTINGS_AT_A_TIME", 3)
    generator = random.Random(readout)
    sets = layer_sets(["all", "each", "22+25", "21-24"], STORED_LAYERS)
    settings: list[Setting] = []
    expected: list[torch.Tensor] = []
    for _ in range(8):
        layers = generator.choice(sets)
        # Factors that do not matter to the readout vary too: leaving them out of the setting must change nothing.
        own = ReadoutSettings(
            recipe=generator.choice(["reference", "paper"]),
            top_layers=generator.randint(1, len(layers)),
            temperature=generator.choice([0.3, 1.0, 5.0, 20.0]),
            head_exponent=generator.choice([0.0, 0.5, 2.0, 3.0]),
            batch=batch,
        )
        subset = generator.choice(draw_subsets(6, generator.randint(1, 6), 4))
        values = {
            **{name: getattr(own, name) for name in ("recipe", "top_layers", "temperature", "head_exponent")},
            "layers": layers,
            "num_calibration": len(subset.samples),
        }
        lists = {name: [value] for name, value in values.items()}
        base = ReadoutSettings(batch=batch)
        settings += product([readout], lists, lambda size, subset=subset: [subset], base)
        expected.append(by_itself(run, readout, values, subset, own).argmax(-1))
    prompts = run.prompts()
    evaluation = Evaluation(settings, Calibrations(run.calibration_prompts()), base, prompts.evidence.log_probs)
    chosen = torch.cat(list(evaluation.choices([prompts])), 1)
    kept = list(dict.fromkeys(settings))
    assert kept, "no setting"
    for setting, choices, theirs in zip(settings, chosen, expected, strict=True):
        assert torch.equal(choices.long(), theirs), setting
    for ours, theirs in zip(
        score(chosen, prompts), metrics_of(dict(enumerate(expected)), prompts).values(), strict=True
    ):
        assert ours == pytest.approx({name: theirs[name] for name in SCORED}, abs=1e-12)


def test_head_scores_are_those_of_the_readout(run: StoredRun) -> None:
    prompts, calibrations = run.prompts(), Calibrations(run.calibration_prompts())
    layers = layer_sets(["22+24"], STORED_LAYERS)[0]
    subset = CalibrationSubset(0, (1, 4))
    setting = Setting("head_information_label_free", layers=layers, head_exponent=3.0, num_calibration=2, subset=subset)
    evaluation = Evaluation([setting], calibrations, ReadoutSettings(), prompts.evidence.log_probs)
    ((_, weights, offsets),) = evaluation._weights
    ours = torch.einsum("lh,plhn->pn", weights.view(5, 3), prompts.evidence.attention.log()) - offsets
    values = {"layers": layers}
    theirs = by_itself(run, setting.readout, values, subset, ReadoutSettings(head_exponent=3.0))
    np.testing.assert_allclose(ours - ours.mean(-1, keepdim=True), theirs, atol=1e-9)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_heads_are_weighted_by_their_information_to_the_exponent(exponent: float) -> None:
    generator = np.random.default_rng(0)
    attention, mean = generator.uniform(0.01, 0.2, (6, 2, 3, 4)), generator.normal(size=(2, 3, 4))
    information = np.array([[0.0, 0.1, 0.7], [1.3, 0.0, 0.4]])
    expected = np.zeros((6, 4))
    for layer, head in itertools.product(range(2), range(3)):
        x = np.log(attention[:, layer, head]) - mean[layer, head]
        expected += information[layer, head] ** exponent * (x - x.mean(1, keepdims=True))
    expected /= (information**exponent).sum()
    got = head_score(*map(torch.tensor, (attention, mean, information)), exponent)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_where_no_head_knows_anything_all_count_the_same() -> None:
    for exponent in (0.0, 2.0):
        assert torch.equal(head_weights(torch.zeros(2, 2), exponent), torch.full((2, 2), 0.25))
    assert head_weights(torch.tensor([[1e-3, 2.0]]), 400.0).tolist() == [[0.0, 1.0]]  # no overflow, no 0 / 0


@pytest.mark.parametrize("exponent", [-1.0, math.inf, math.nan])
def test_an_exponent_that_makes_no_sense_is_refused(exponent: float) -> None:
    with pytest.raises(UserError, match="head_exponent"):
        ReadoutSettings(head_exponent=exponent)


def test_the_runs_own_settings_give_the_runs_own_metrics(run_folder: Path, tmp_path: Path) -> None:
    results = sweep(run_folder, top_layers=2, out=tmp_path)
    report = json.loads((run_folder / "metrics.json").read_text())["readouts"]
    assert [result.setting.readout for result in results] == list(report)
    for result in results:
        assert result.scores == pytest.approx({name: report[result.setting.readout][name] for name in SCORED})


def test_one_permutation_has_no_spread(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run", permutations=1, samples=6)
    results = sweep(folder, temperature=[1.0, 5.0])
    assert {result.scores["accuracy_std"] for result in results} == {None}
    assert rows_of(folder / "sweep/sweep.csv")[0]["accuracy_std"] == ""


def test_torch_keeps_its_threads(run_folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    sweep(run_folder, "vanilla", top_layers=1, out=tmp_path)
    with pytest.raises(UserError):
        sweep(run_folder, num_calibration=100, out=tmp_path)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------- subsets and grids


def test_subsets_are_seeded_different_and_all_where_there_are_no_more() -> None:
    twenty = draw_subsets(10, 5, 20, seed=3)
    assert twenty == draw_subsets(10, 5, 20, seed=3) != draw_subsets(10, 5, 20, seed=4)
    assert len({subset.samples for subset in twenty}) == 20
    assert all(len(set(subset.samples)) == 5 and set(subset.samples) <= set(range(10)) for subset in twenty)
    assert [subset.samples for subset in draw_subsets(5, 3, 100)] == list(itertools.combinations(range(5), 3))
    assert [subset.samples for subset in draw_subsets(5, 5, 20)] == [(0, 1, 2, 3, 4)]
    state = random.getstate(), torch.get_rng_state()
    draw_subsets(10, 5, 20)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


def test_a_calibration_holds_the_samples_of_its_subset_and_no_other(run: StoredRun) -> None:
    passes = run.calibration_prompts()
    rows = (passes.sample_index == 2) | (passes.sample_index == 5)
    expected = calibrate(
        passes.evidence[rows], passes.targets[rows], passes.permutations[rows], passes.sample_index[rows]
    )
    calibrations = Calibrations(passes)
    got = calibrations.of(CalibrationSubset(0, (2, 5)), None)
    for name, value in expected.state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(got.state()[name])), name
    assert calibrations.names((2, 5)) == ["cal-2", "cal-5"]


def test_only_the_heads_of_the_chosen_layers_vote_on_the_targets(run: StoredRun) -> None:
    passes, layers = run.calibration_prompts(), layer_sets(["22+24"], STORED_LAYERS)[0]
    attention = torch.rand(passes.evidence.attention.shape, generator=torch.Generator().manual_seed(0)).double()
    passes = replace(passes, evidence=Evidence.from_heads(passes.evidence.log_probs, attention))
    slices = Evidence.from_heads(passes.evidence.log_probs, attention[:, [1, 3]])
    theirs = calibrate(slices, passes.targets, passes.permutations, passes.sample_index).head_information_label_free
    calibrations = Calibrations(passes)
    assert torch.equal(calibrations.of(None, layers, label_free=True).head_information_label_free, theirs)
    of_all = calibrations.of(None, layers).head_information_label_free
    assert of_all.shape == theirs.shape and not torch.allclose(of_all, theirs)


def test_given_values_are_combined(run_folder: Path, tmp_path: Path) -> None:
    results = sweep(
        run_folder,
        ["agd", "vanilla"],
        temperature=[1.0, 5.0],
        top_layers=[1, 2, 5],
        num_calibration=[1, 6],
        out=tmp_path,
    )
    agd = [result.setting for result in results if result.setting.readout == "agd"]
    assert len(agd) == len(set(agd)) == 2 * 3 * (6 + 1)  # 6 draws of one sample, one of all six
    assert len(results) == len(agd) + 1  # nothing of this matters to vanilla
    rows = rows_of(tmp_path / "sweep.csv")
    assert len(rows) == len(results)
    for row, result in zip(rows, results, strict=True):
        assert float(row["accuracy"]) == result.scores["accuracy"]
        if result.setting.subset is not None:
            assert row["calibration_samples"].split() == [f"cal-{place}" for place in result.setting.subset.samples]
            assert int(row["num_calibration"]) == len(result.setting.subset.samples)
    assert rows[-1]["top_layers"] == rows[-1]["draw"] == rows[-1]["calibration_samples"] == ""


def test_a_repeated_value_counts_once(run_folder: Path, tmp_path: Path) -> None:
    results = sweep(run_folder, "agd", temperature=[2.0, 2.0], layers=["all", "21-25", 21, "21"], out=tmp_path)
    assert [str(result.setting.layers) for result in results] == ["all", "21"]


def test_k_is_lowered_to_what_a_set_of_layers_has(run_folder: Path, tmp_path: Path) -> None:
    results = sweep(run_folder, "raw_attention", layers=["each", "22-24", "all"], out=tmp_path)
    assert [(str(r.setting.layers), r.setting.top_layers) for r in results] == [
        *((str(layer), 1) for layer in STORED_LAYERS),
        ("22-24", 2),
        ("all", 2),
    ]
    table = (tmp_path / "sweep.md").read_text()
    assert "| readout | 21 | 22 | 23 | 24 | 25 | 22-24 | all |" in table


def test_without_values_every_factor_is_varied_by_itself() -> None:
    stored = Stored(
        ("vanilla", "pride", "agd"), tuple(range(21, 36)), 10, ReadoutSettings(top_layers=7, temperature=4.0)
    )
    grid = make_grid(stored, {}, None, 20, 0)
    own = grid.reference
    assert own["top_layers"] == 7 and own["temperature"] == 4.0 and own["num_calibration"] == 10
    assert len(set(grid.settings)) == len(grid.settings)
    readouts = {setting.readout for setting in grid.settings}
    assert readouts >= {"vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information_label_free"}
    for setting in grid.settings:
        assert sum(not grid._is_held(setting, factor) for factor in grid.varied) <= 1, setting
    assert grid.varied["recipe"] == ("reference", "paper")
    assert {1, 2, 7, 15} <= set(grid.varied["top_layers"])
    assert {1.0, 4.0, 5.0} <= set(grid.varied["temperature"])
    assert grid.varied["num_calibration"] == (1, 2, 3, 5, 10)
    assert [str(layers) for layers in grid.varied["layers"]] == [*map(str, range(21, 36)), "21-27", "28-35", "all"]
    of_five = [setting for setting in grid.settings if setting.readout == "agd" and setting.num_calibration == 5]
    assert len(of_five) == 20


def test_readouts_without_values_are_ablated(run_folder: Path, tmp_path: Path) -> None:
    results = sweep(run_folder, ["head_information"], out=tmp_path)
    settings = [result.setting for result in results]
    assert {setting.readout for setting in settings} == {"head_information"}
    assert (
        len({setting.head_exponent for setting in settings}) > 3 and len({setting.layers for setting in settings}) > 3
    )


def test_every_readout_has_its_factors() -> None:
    assert all(isinstance(factors_of(name, ReadoutSettings()), tuple) for name in READOUTS)
    assert factors_of("batch_calibration", ReadoutSettings(batch="test")) == ()


def test_layer_sets() -> None:
    stored = (3, 7, 8, 9)
    sets = layer_sets(["all", "7-9", "3+8", 9, "each", "3+7-9"], stored)
    assert [(str(layers), layers.indices) for layers in sets] == [
        ("all", (0, 1, 2, 3)),
        ("7-9", (1, 2, 3)),
        ("3+8", (0, 2)),
        ("9", (3,)),
        ("3", (0,)),
        ("7", (1,)),
        ("8", (2,)),
    ]
    assert all_layers(stored) == sets[0]


# --------------------------------------------------------------------------------------------------- tables and plots


@pytest.fixture(scope="module")
def ablations(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ablations")
    (out / "accuracy_over_recipe.png").write_text("of an earlier sweep")
    (out / "mine.png").write_text("keep")
    sweep_with_plots(run_folder, draws=5, out=out)
    return out


PLOTS = ("readouts", *(f"accuracy_over_{factor}" for factor in ("top_layers", "temperature", "layers")))
PLOTS += ("accuracy_over_head_exponent", "accuracy_over_num_calibration")


def test_the_ablations_are_plotted(ablations: Path) -> None:
    assert {path.stem for path in ablations.glob("*.png")} == {*PLOTS, "mine"}
    for name in PLOTS:
        with Image.open(ablations / f"{name}.png") as picture:
            assert picture.width > 800 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
        assert ElementTree.parse(ablations / f"{name}.svg").getroot().tag.endswith("svg")


def test_a_line_runs_from_left_to_right_whatever_order_is_asked_for() -> None:
    stored = Stored(("agd",), STORED_LAYERS, 6, ReadoutSettings())
    options = {"temperature": [5, 1.0, 2], "layers": ["all", "23", "21-22", "21"]}
    grid = make_grid(stored, options, None, 1, 0)
    scores = dict.fromkeys(SCORED, 0.5)
    found = [Summary(setting.without_subset(), 1, scores, dict.fromkeys(SCORED)) for setting in grid.settings]
    run = SweptRun("run", "test", 4, 20, 5, STORED_LAYERS)
    with style():
        lines = {plot.name: plot.figure.axes[0].lines for plot in make_plots(grid, found, run)}
    temperature, layers = lines["accuracy_over_temperature"], lines["accuracy_over_layers"]
    assert temperature[0].get_xdata().tolist() == temperature[1].get_xdata().tolist() == [1, 2, 5]
    assert layers[0].get_xdata().tolist() == [0, 1]  # single layers are joined
    assert layers[1].get_xdata().tolist() == pytest.approx([0, 1, 2.7, 3.7])  # sets stand by themselves


def test_the_tables_hold_the_means_over_subsets(ablations: Path) -> None:
    text = (ablations / "sweep.md").read_text(encoding="utf-8")
    assert text.startswith("# Sweep of my $run (test): N = 4 images, 20 samples x 5 permutations")
    assert all(f"![{name}]({name}.png)" in text for name in PLOTS)
    rows = rows_of(ablations / "sweep.csv")
    one = [
        float(row["accuracy"])
        for row in rows
        if (row["readout"], row["num_calibration"], row["recipe"], row["layers"]) == ("agd", "1", "reference", "all")
    ]
    assert len(one) == 5
    cell = f"{100 * np.mean(one):.1f} ± {100 * np.std(one, ddof=1):.1f}"
    table = text.split("## Calibration samples")[1].split("##")[0]
    assert next(line for line in table.splitlines() if line.startswith("| agd |")).startswith(f"| agd | {cell} |")
    best = max(float(row["accuracy"]) for row in rows if row["num_calibration"] in ("", "6"))
    assert f"| {100 * best:.1f} |" in text.split("## Highest accuracy")[1]


def test_the_same_sweep_writes_the_same_files(run_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        sweep_with_plots(run_folder, ["agd"], num_calibration=[1, 3], draws=3, out=tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "accuracy_over_num_calibration.svg" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_terminal_shows_every_figure(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(run_folder, num_calibration=[1, 2, 3, 4, 5, 6], out=tmp_path)
    shown = capsys.readouterr().out
    assert "…" not in shown and max(map(len, shown.splitlines()[1:-1])) <= 80
    assert "head_information" in shown and str(tmp_path / "sweep.csv") in shown


def test_options_as_they_are_typed(run_folder: Path) -> None:
    typed = "--readouts [agd,purified_attention] --layers [22-24,all,each,21+23] --top_layers 1 --recipe [paper]"
    run_command("sweep", [str(run_folder), *typed.split(), "--temperature=[1,2.5]", "--plots", "false"])
    rows = rows_of(run_folder / "sweep/sweep.csv")
    assert len(rows) == (2 + 1) * 8 and {row["recipe"] for row in rows} == {"paper"}


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readouts": ["cot"]}, "'cot' is not a readout; choose from vanilla"),
        ({"readouts": []}, "No readout is chosen"),
        ({"temperature": []}, "--temperature is an empty list"),
        ({"layers": "40"}, "Layer 40 of --layers '40' is not stored; the run has 21-25"),
        ({"layers": ["21-30"]}, "Layer 26 of"),
        ({"layers": "21,22"}, r"'21,22' cannot be read; write one layer \(21\)"),
        ({"layers": "25-21"}, "is no layer"),
        ({"top_layers": 6}, "--top_layers is 6, but --layers all has only 5"),
        ({"top_layers": [1, 2], "layers": "each"}, "--top_layers is 2, but --layers 21 has only 1"),
        ({"top_layers": 0}, "must be at least 1"),
        ({"temperature": 0.0}, "must be positive"),
        ({"head_exponent": -1.0}, "head_exponent"),
        ({"recipe": "mine"}, "--recipe is 'mine'; choose from reference, paper"),
        ({"num_calibration": 7}, r"stores 6 calibration samples; calibrate on more with fit --data.num_calibration 7"),
        ({"num_calibration": [0]}, "--num_calibration is 0"),
        ({"draws": 0}, "--draws is 0"),
    ],
)
def test_what_the_store_cannot_give_is_one_clear_line(
    run_folder: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sweep(run_folder, out=tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Run test with"):
        sweep(tmp_path)


@pytest.mark.parametrize("name", ["evidence.parquet", "calibration_evidence.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_store(run_folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    _belong(folder)
    if damage == "missing":
        (folder / name).unlink()
    else:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        sweep(folder)


def test_calibration_passes_of_another_run_are_refused(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    _belong(folder)
    other = synthetic_run(tmp_path / "other", seed=1, samples=2)
    shutil.copy(other / "calibration_evidence.parquet", folder)
    with pytest.raises(UserError, match="not those of its calibration"):
        sweep(folder)


def test_evidence_of_other_layers_is_refused(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    _belong(folder)
    other = synthetic_run(tmp_path / "other", layers=4, samples=2)
    shutil.copy(other / "evidence.parquet", folder)
    with pytest.raises(UserError, match=r"not that of its metrics\.json"):
        sweep(folder)


def _belong(folder: Path) -> None:
    """Let a copied run's metrics name the copied calibration."""
    report = json.loads((folder / "metrics.json").read_text())
    report["calibration"] = str(folder / "calibration.ckpt")
    (folder / "metrics.json").write_text(json.dumps(report))


def test_a_setting_without_its_subset() -> None:
    setting = Setting("agd", num_calibration=2, subset=CalibrationSubset(1, (0, 3)))
    assert setting.without_subset() == replace(setting, subset=None)
