"""`predict --images ... --caption ...`: a person's photos."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from commands import fails, noise_options, run, stops_after
from PIL import Image
from tiny_vlm import write_noise_images


@pytest.fixture(scope="module")
def calibrated(tiny_folder: Path, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a model with a calibration for three images at a time."""
    folder = shutil.copytree(fitted, tmp_path_factory.mktemp("calibrated"), dirs_exist_ok=True)
    options = noise_options(tiny_folder, folder)
    return [option for option in options if not option.startswith("--data")]


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    write_noise_images(folder, 7, sizes=((60, 90), (90, 60)))
    (folder / "notes.txt").write_text("no photo")
    return folder


def run_folder(options: list[str]) -> Path:
    return Path(next(option for option in options if "default_root_dir" in option).partition("=")[2])


def ranked(options: list[str]) -> list[dict]:
    newest = max(run_folder(options).glob("photos-*/rankings.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(line) for line in newest.read_text().splitlines()]


def test_more_photos_than_the_model_takes(calibrated: list[str], album: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "captions.txt").write_text("a kitchen\n\n  two giraffes \n")
    sheet = tmp_path / "out" / "sheet.png"
    question = ["--images", f"{album}/*.png", "--caption", "a dog", "--caption", "a cat", "a bird"]
    more = [f"--captions={tmp_path / 'captions.txt'}", f"--contact_sheet={sheet}"]
    assert run("predict", *calibrated, *question, *more) == 0
    rankings = ranked(calibrated)
    assert [ranking["caption"] for ranking in rankings] == ["a dog", "a cat", "a bird", "a kitchen", "two giraffes"]
    for ranking in rankings:
        assert sorted(photo["image"] for photo in ranking["photos"]) == sorted(map(str, album.glob("*.png")))
        assert {"vanilla", "agd"} <= set(ranking["agreement"])
        for readout, agreement in ranking["agreement"].items():
            shares = [photo["probability"][readout] for photo in ranking["photos"]]
            assert sum(shares) == pytest.approx(1)
            assert 1 / 3 <= agreement <= 1
        best_first = [photo["probability"][ranking["rank_by"]] for photo in ranking["photos"]]
        assert best_first == sorted(best_first, reverse=True)
    printed = capsys.readouterr().out
    assert "two giraffes" in printed
    assert "came first whatever the order" in printed
    assert Image.open(sheet).size[0] > 1000


def test_the_order_of_the_files_makes_no_difference(calibrated: list[str], album: Path) -> None:
    files = sorted(map(str, album.glob("*.png")))
    answers = []
    for named in (files, files[::-1], [str(album)], [*files[3:], f"{album}/*_00[0-4].png"]):
        assert run("predict", *calibrated, "--images", *named, "--caption", "a dog on the grass") == 0
        answers.append(ranked(calibrated))
    assert all(answer == answers[0] for answer in answers)


def test_one_group_is_the_mean_over_its_orders(calibrated: list[str], album: Path) -> None:
    """As many photos as the calibration holds for: no fit; recomputed here from the prompts."""
    files = sorted(map(str, album.glob("*.png")))[:3]
    assert run("predict", *calibrated, "--images", *files, "--caption", "a dog", "--data.num_permutations=4") == 0
    (ranking,) = ranked(calibrated)
    prompts = [
        json.loads(line)
        for path in run_folder(calibrated).glob("photos-*/predictions.jsonl")
        for line in path.read_text().splitlines()
    ]
    prompts = [prompt for prompt in prompts if prompt["images"] == files and prompt["caption"] == "a dog"]
    assert len(prompts) == 4
    by_photo = defaultdict(list)
    tops = []
    for prompt in prompts:
        log_probs = np.array(prompt["log_probs"])
        tops.append(files[prompt["permutation"][int(log_probs.argmax())]])
        for position, source in enumerate(prompt["permutation"]):
            by_photo[files[source]].append(log_probs[position])
    unnormalised = {photo: np.exp(np.mean(values)) for photo, values in by_photo.items()}
    total = sum(unnormalised.values())
    for photo in ranking["photos"]:
        assert photo["probability"]["vanilla"] == pytest.approx(unnormalised[photo["image"]] / total, abs=1e-6)
    best = max(unnormalised, key=unnormalised.__getitem__)
    assert ranking["agreement"]["vanilla"] == pytest.approx(np.mean([top == best for top in tops]))


def test_an_interrupted_ranking_goes_on(calibrated: list[str], album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question = ["--images", str(album), "--caption", "a dog that was interrupted"]
    with monkeypatch.context() as patch:
        stops_after(patch, 2)
        with pytest.raises(RuntimeError, match="went down"):
            run("predict", *calibrated, *question)
    with monkeypatch.context() as patch:
        sizes = stops_after(patch, 100)
        assert run("predict", *calibrated, *question) == 0
    (ranking,) = ranked(calibrated)
    assert len(ranking["photos"]) == 7
    prompts = max(run_folder(calibrated).glob("photos-*/predictions.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    groups = len(prompts.read_text().splitlines()) // 5
    assert len(sizes) == groups - 2


def test_another_question_loses_nothing(calibrated: list[str], album: Path) -> None:
    root = run_folder(calibrated)
    assert run("predict", *calibrated, "--images", str(album), "--caption", "one question") == 0
    before = {path: path.read_bytes() for path in root.glob("photos-*/*.jsonl")}
    assert run("predict", *calibrated, "--images", str(album), "--caption", "another") == 0
    after = {path: path.read_bytes() for path in root.glob("photos-*/*.jsonl")}
    assert before.items() < after.items()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (["--images", "nowhere/*.jpg", "--caption", "x"], "'nowhere/*.jpg' finds no image file"),
        (["--images", "{album}"], "Say what the photos are to be ranked for"),
        (["--caption", "x"], "go with --images"),
        (["--images", "{album}", "--caption", " "], "no empty one"),
        (["--images", "{album}/noise_000.png", "{album}/noise_001.png", "--caption", "x"], "There are 2 photos, and"),
        (["--images", "{album}/gone.png", "{album}", "--caption", "x"], "gone.png does not exist"),
        (["--images", "{album}/notes.txt", "{album}", "--caption", "x"], "notes.txt cannot be read"),
        (["--images", "{album}", "--captions", "nowhere.txt"], "Cannot read the captions in nowhere.txt"),
        (["--images", "{album}", "--caption", "x", "--data", "lad_pl.data.DemoData"], "takes the place of --data"),
        (["--images", "{album}", "--caption", "x", "--contact_sheet", "sheet.what"], "name a .jpg, .png or .webp"),
    ],
)
def test_bad_questions(calibrated: list[str], album: Path, capsys, question: list[str], message: str) -> None:
    assert message in fails(capsys, "predict", *calibrated, *(word.format(album=album) for word in question))


def test_without_a_calibration(calibrated: list[str], album: Path, tmp_path: Path, capsys) -> None:
    elsewhere = [*calibrated, f"--trainer.default_root_dir={tmp_path}"]
    line = fails(capsys, "predict", *elsewhere, "--images", str(album), "--caption", "x")
    assert "There is no calibration" in line
    assert "run fit first" in line
