"""The benchmark scripts on a tiny model: their two sides agree, and their figures are what they say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks import (
    against_plain,
    batching,
    candidates,
    correction,
    gpu,
    hard_negatives,
    limit,
    memory,
    precision,
    processes,
    sweep,
)
from benchmarks.baseline import PlainModel
from benchmarks.limit import BarePasses
from benchmarks.measure import Figure, Stopwatch, interleaved, more_than, ratios, run
from benchmarks.memory import one_peak, peaks
from benchmarks.models import SHAPES, build_config, build_model, build_processor
from benchmarks.ours import Bench, BenchOptions, LoadedModel
from lad_pl import UserError
from lad_pl.data.permutations import random_permutations

SMALL = {"shape": "tiny", "image_size": 112, "permutations": 2, "repeats": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


def figures_of(script: ModuleType, **options: Any) -> dict[str, Figure]:
    """The script's figures by name, measured in the order of the dictionary."""
    measure = getattr(script, script.__name__.rpartition(".")[2])
    return {figure.name: figure for figure in measure(script.Options(**options))}


@pytest.mark.parametrize(("shape", "least", "most"), [("0.4b", 0.3, 0.5), ("3b", 3.0, 4.5), ("8b", 7.5, 9.5)])
def test_the_shapes_have_the_size_of_their_name(shape: str, least: float, most: float) -> None:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(build_config(SHAPES[shape], build_processor().tokenizer))
    model.tie_weights()
    assert least < sum(parameter.numel() for parameter in model.parameters()) / 1e9 < most


def test_a_checkpoint_is_built_once_and_the_same_again(folder: Path, tmp_path: Path) -> None:
    first = build_model(folder / "again", "tiny")
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert build_model(folder / "again", "tiny") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert (build_model(tmp_path, "tiny") / "model.safetensors").read_bytes() == (
        first / "model.safetensors"
    ).read_bytes()
    with pytest.raises(UserError, match="no shape 'huge'"):
        build_model(folder, "huge")


@pytest.mark.parametrize(("n", "permutations"), [(4, 2), (10, 1)])
def test_plain_transformers_has_the_same_evidence(folder: Path, n: int, permutations: int) -> None:
    """Two implementations that share no model code; so whichever is faster, they do the same work."""
    bench = Bench.build(folder, BenchOptions(image_size=112, permutations=permutations), "tiny", n)
    loaded = LoadedModel(bench)
    batch = loaded.batch()
    ours = loaded.evidence(batch).cpu()
    plain = PlainModel(bench)
    assert list(plain.layers) == list(loaded.layers)
    for row, order in enumerate(random_permutations(n, permutations)):
        for single_pass in (False, True):
            answer, theirs = plain(bench.samples[0], order, bench.annotations.parent, single_pass)
            assert isinstance(answer, str)
            torch.testing.assert_close(theirs.log_probs[0], ours.log_probs[row], atol=2e-5, rtol=0)
            torch.testing.assert_close(theirs.attention[0], ours.attention[row], atol=1e-5, rtol=0)
    assert ours.log_probs.std(1).min() > 0.01  # the answers are not all alike
    torch.testing.assert_close(loaded.vanilla(batch), ours.log_probs, atol=1e-6, rtol=0)
    assert loaded.agd(batch).shape == (permutations, n)


def test_the_bare_passes_are_those_of_the_batch(folder: Path) -> None:
    loaded = LoadedModel(Bench.build(folder, BenchOptions(permutations=1), "tiny", 10))
    batch = loaded.batch()
    bare = BarePasses(loaded, batch)
    length = batch.tokens["input_ids"].shape[1]
    patches = sum(args[0].shape[0] for args, _ in bare.images)
    assert patches == 10 * 4 * 144  # 336 x 336 pixels are 144 tokens of 4 patches
    assert [tuple(options["inputs_embeds"].shape[:2]) for _, options in bare.prompts] == [(1, length)]
    bare.vision()
    bare.language()


def test_limit(folder: Path) -> None:
    figures = figures_of(limit, **SMALL, samples=1, num_workers=0, folder=str(folder))
    floor = figures["bare vision tower"].median + figures["bare language model"].median
    assert figures["test / bare passes"].median == pytest.approx(figures["test"].median / floor)
    assert figures["test / bare passes"].median > 1


def test_against_plain(folder: Path) -> None:
    figures = figures_of(against_plain, **SMALL, num_workers=0, folder=str(folder))
    assert figures["decisions that differ"].values == (0.0,)
    assert figures["decisions that differ"].note.startswith(
        "of 28,"
    )  # 2 prompts, 7 readouts, 2 variants of plain transformers
    ratio = figures["plain transformers, per prompt"].median / figures["test, per prompt"].median
    assert figures["times as fast, N=4"].median == pytest.approx(ratio)


def test_correction_and_candidates(folder: Path) -> None:
    costs = figures_of(correction, **SMALL, num_candidates=[4], memory=False, folder=str(folder))
    assert list(costs) == [
        "agd's own work, share of vanilla's time, N=4",
        "of it for the caption's rows, N=4",
        "agd over vanilla, time, N=4",
        "vanilla, N=4",
    ]
    several = figures_of(candidates, **{**SMALL, "permutations": 1}, num_candidates=[10], folder=str(folder))
    assert several["several tokens over one, N=10"].note == "1 continuations of the prompt"
    assert costs["agd's own work, share of vanilla's time, N=4"].median > 0
    assert costs["of it for the caption's rows, N=4"].median > 0
    assert several["the continuations' own work, share of one token's time, N=10"].median > 0
    assert all(-90 < figure.median < 900 for figure in (*costs.values(), *several.values()))


def test_batching(folder: Path) -> None:
    small = {"num_candidates": 2, "samples": 12, "permutations": 2, "batch_tokens": 1500, "compared": 3}
    figures = figures_of(batching, **small, folder=str(folder))
    assert 0 < figures["padding"].median < figures["padding in the annotations' order"].median
    difference = figures["log-probabilities, in a batch or alone, largest difference"]
    assert difference.note == "over 6 prompts"
    assert difference.median < 100  # millionths


def test_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "isolated_peaks", peaks)  # a process of its own takes ten seconds to start
    figures = figures_of(memory, **SMALL, num_candidates=[4], variants=["vanilla", "plain"], folder=str(folder))
    assert list(figures) == ["vanilla, N=4", "plain, N=4"]
    assert all(figure.median >= 0 for figure in figures.values())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
def test_the_peak_is_that_of_the_work() -> None:
    one_peak(lambda: torch.ones(50_000_000), "cpu")  # 200 MB, forgotten by the next
    assert 95 < one_peak(lambda: torch.ones(25_000_000), "cpu").over_weights < 120


def test_gpu(folder: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            figures_of(gpu)
    small = {
        "image_size": 112,
        "samples": 1,
        "permutations": 2,
        "batch_size": 1,
        "num_workers": 0,
        "plain_prompts": 1,
        "repeats": 1,
        "pass_repeats": 1,
    }
    small |= {"shapes": ["tiny"], "num_candidates": [4, 10], "dtype": "float32", "device": "cpu"}
    figures = figures_of(gpu, **small, folder=str(folder), figures=str(tmp_path / "figures.jsonl"))
    written = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert {figure["name"]: tuple(figure["values"]) for figure in written} == {
        name: figure.values for name, figure in figures.items()
    }
    for n in (4, 10):
        at = f"tiny, N={n}:"
        assert 0 < figures[f"{at} share of the matrix rate, agd"].median < 100
        assert 0 < figures[f"{at} vision tower's share of the time"].median < 100
        assert figures[f"{at} features, largest difference window by window"].median < 1e-5
        assert figures[f"{at} test"].median > 0
        assert figures[f"{at} decisions that differ from plain transformers"].values == (0.0,)
        assert figures[f"{at} decisions that differ window by window"].values == (0.0,)


def test_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sweep.GRIDS, "agd", {"readouts": ["agd"], "temperature": [1.0, 5.0], "top_layers": [1, 2], "plots": False}
    )
    small = {"prompts": 50, "num_candidates": 4, "layers": 2, "heads": 2, "calibration_samples": 3, "repeats": 1}
    figures = figures_of(sweep, **small, grids=["agd"])
    assert figures["agd"].note == "4 settings, 50 prompts, N = 4, L = 2, H = 2"


def test_hard_negatives() -> None:
    figures = figures_of(hard_negatives, pool=200, anchors=10, loop_anchors=3, repeats=1)
    assert figures["anchors with other negatives"].values == (0.0,)
    assert figures["lad_pl, per anchor"].note == "10 anchors, 200 images"


def test_variants_take_turns_and_figures_are_compared_with_their_targets() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert ratios((3.0, 4.0), (2.0, 4.0)) == (1.5, 1.0)
    assert more_than((3.0,), (2.0,)) == (50.0,)
    figure = Figure("time", (1.0, 1.2, 1.1), " s", at_most=1.15)
    assert figure.row() == ("time", "at most 1.15 s", "1.10 s", "1.00 to 1.20", "yes", "")
    assert Figure("speed", (2.0,), at_least=3).reached is False


def test_a_stopwatch_counts_a_call_within_a_call_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Work:
        def outer(self) -> str:
            return self.inner() + self.inner()

        def inner(self) -> str:
            return "done"

    ticks = iter(range(100))  # every look at the clock is a second later
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    with Stopwatch().inside((Work, "outer"), (Work, "inner")) as stopwatch:
        assert Work().outer() == "donedone"
        assert stopwatch.seconds == 1
        Work().inner()
    assert stopwatch.seconds == 2
    Work().outer()
    assert stopwatch.seconds == 2


@dataclass(frozen=True)
class Upto:
    upto: int = 2
    """How many."""


def test_figures_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each when it is there, and all as Markdown at the end, whatever the terminal's width."""

    def script(options: Upto) -> Iterator[Figure]:
        for number in range(options.upto):
            yield Figure(f"figure {number}", (1.0, 2.0), " s", at_least=1, note="a note of many words " * 3)
            assert f"figure {number}: at least 1 s, 1.50 s, 1.00 to 2.00, yes, a note" in capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", ["script", "--upto", "3"])
    run(script)
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines if "note" in line] == [7, 7, 7]
    assert "Command: python -m benchmarks.script --upto 3" in lines


@pytest.mark.parametrize(
    "script",
    [against_plain, batching, candidates, correction, gpu, hard_negatives, limit, memory, precision, processes, sweep],
    ids=lambda script: script.__name__.rpartition(".")[2],
)
def test_every_script_shows_its_options(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = script.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as exit_info:
        run(getattr(script, name))
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  --{field.name} " in shown for field in fields(script.Options))


def test_questions_can_be_read(folder: Path) -> None:
    bench = Bench.build(folder, BenchOptions(), "tiny", 4, 2)
    assert len(json.loads(bench.annotations.read_text())) == 3  # one is for calibration
    assert [sample.id for sample in bench.samples] == ["1", "2"]
