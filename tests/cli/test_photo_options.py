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
        (
            ["--images", "{album}/photo.nef", "{album}", "--caption", "x"],
            "photo.nef cannot be read (raw photos; save them",
        ),
        (["--images", "{album}/empty.png", "--caption", "x"], "empty.png is empty (0 bytes)"),
        (["--images", "{album}/link.png", "--caption", "x"], "link.png is a link to nowhere, which does not exist"),
        (["--images", "{album}/folder.jpg", "--caption", "x"], "folder.jpg' finds no image file: the folder is empty"),
        (["--images", "{album}/*.txt", "--caption", "x"], "finds no image file: none of 1 names is one of a photo"),
        (["--images", "{album}/notes.txt", "{album}", "--caption", "x"], "notes.txt cannot be read"),
        (["--images", "{album}", "--captions", "nowhere.txt"], "Cannot read the captions in nowhere.txt"),
        (["--images", "{album}", "--caption", "x", "--data", "lad_pl.data.DemoData"], "takes the place of --data"),
        (["--images", "{album}", "--caption", "x", "--contact_sheet", "sheet.what"], "name a .jpg, .png or .webp"),
    ],
)
def test_bad_questions(
    calibrated: list[str], album: Path, tmp_path: Path, capsys, question: list[str], message: str
) -> None:
    album = Path(shutil.copytree(album, tmp_path / "album"))
    for name in ("photo.nef", "empty.png"):
        (album / name).write_text("raw"[: 3 * (name == "photo.nef")])
    (album / "link.png").symlink_to("nowhere")
    (album / "folder.jpg").mkdir()
    assert message in fails(capsys, "predict", *calibrated, *(word.format(album=album) for word in question))


def test_without_a_calibration(calibrated: list[str], album: Path, tmp_path: Path, capsys) -> None:
    elsewhere = [*calibrated, f"--trainer.default_root_dir={tmp_path}"]
    line = fails(capsys, "predict", *elsewhere, "--images", str(album), "--caption", "x")
    assert "There is no calibration" in line
    assert "run fit first" in line


def test_the_model_is_not_loaded_for_broken_images(
    fitted_run: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = sorted(tmp_path.rglob("*.png"))[4:6]
    for path in broken:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setattr("lad_pl.module.VisionLanguageModel.load", lambda spec: pytest.fail("the model was loaded"))
    line = fails(capsys, "test", *fitted_run)
    assert "2 of " in line
    assert all(str(path) in line for path in broken)
    photos = ["--images", *map(str, sorted(broken[0].parent.glob("*.png"))), "--caption", "x"]
    options = [option for option in fitted_run if not option.startswith("--data")]
    line = fails(capsys, "predict", *options, *photos)
    assert all(str(path) in line for path in broken)


TEXTS = [
    *(
        "a dog \U0001f600",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 family",
        "one\u2028two\x85three",
        "null",
        "yes",
        "1e3",
        "~",
    ),
    *(
        "{",
        "[",
        "'",
        '"',
        "\\",
        "\\n \\u0041",
        "%a b%",
        "@here",
        "a: b",
        "#1",
        "- x",
        "!tag",
        "*x",
        "&x",
        "${HOME}",
        "a, b",
        "\ufeffx\uffff",
    ),
]
"""What YAML, JSON or a shell would read as something else."""


def questioned(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The photos and captions that the command hands to PhotoData."""
    from lad_pl.cli.lightning_cli import CLI

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLI, "before_instantiate_classes", lambda cli: None)
        patch.setattr(CLI, "instantiate_classes", lambda cli: None)
        patch.setattr(CLI, "_run_subcommand", lambda cli, command: None)
        data = CLI(["predict", *arguments]).config.predict.data.init_args
    return data.photos, data.captions


def test_captions_and_names_arrive_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~", "${HOME}"):  # what is there by such a name is meant
        (tmp_path / name).touch()
    (tmp_path / "captions.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode() + b"\r\n\r\n")
    options = ["--images", *TEXTS, "--caption", *TEXTS, f"--captions={tmp_path / 'captions.txt'}"]
    photos, captions = questioned(options)
    assert photos == TEXTS
    assert captions[: len(TEXTS)] == TEXTS
    assert captions[len(TEXTS) :] == TEXTS


def test_odd_names_and_captions_to_the_end(calibrated: list[str], album: Path, tmp_path: Path, capsys) -> None:
    """Through the model, into the files, and from config.yaml again."""
    names = ["Screenshot at 9.41\u202fAM.png", "\U0001f600 \u00a0\u3000\u200d\u00ad.png", "one\u2028'\"two%.png"]
    for photo, name in zip(sorted(album.glob("*.png")), names, strict=False):
        shutil.copy(photo, tmp_path / name)
    caption = "a dog \U0001f600\u2028: {"
    sheet = f"--contact_sheet={tmp_path / 'out' / 'sheet.png'}"
    assert run("predict", *calibrated, "--images", str(tmp_path), "--caption", caption, sheet) == 0
    (ranking,) = ranked(calibrated)
    assert ranking["caption"] == caption
    assert {Path(photo["image"]).name for photo in ranking["photos"]} == set(names)
    configuration = max(run_folder(calibrated).glob("photos-*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
    assert run("predict", "--config", str(configuration), "--model.overwrite=true") == 0
    assert ranked(calibrated) == [ranking]


@pytest.mark.parametrize(
    "options", [["--caption", "a \udce9"], ["--images", "{album}", "b\udce9.png", "--caption", "x"]]
)
def test_bytes_that_are_no_text(calibrated: list[str], album: Path, capsys, options: list[str]) -> None:
    options = [*(["--images", str(album)] if "--images" not in options else []), *options]
    line = fails(capsys, "predict", *calibrated, *(word.format(album=album) for word in options))
    assert "\\udce9" in line
    assert "characters that cannot be written" in line


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_captions_in_another_encoding(
    calibrated: list[str], album: Path, tmp_path: Path, capsys, encoding: str
) -> None:
    (tmp_path / "captions.txt").write_text("a café\n", encoding=encoding)
    question = ["--images", str(album), "--captions", str(tmp_path / "captions.txt")]
    line = fails(capsys, "predict", *calibrated, *question)
    assert "captions.txt" in line
    assert "save it as UTF-8" in line


def test_what_is_left_out_is_said_once(calibrated: list[str], album: Path, tmp_path: Path, capsys) -> None:
    """Other formats, links to nothing, and copies, which would share one photo's probability."""
    photos = [shutil.copy(photo, tmp_path) for photo in sorted(album.glob("*.png"))[:4]]
    shutil.copy(photos[0], tmp_path / "noise_copy.png")
    (tmp_path / "noise_link.png").symlink_to(photos[1])
    (tmp_path / "noise_gone.png").symlink_to("nowhere.png")
    for name in ("1.CR2", "2.cr2", "notes.txt", "a.xmp", ".DS_Store"):
        (tmp_path / name).write_text("x")
    capsys.readouterr()
    assert run("predict", *calibrated, "--images", str(tmp_path), f"{tmp_path}/*", "--caption", "x") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "Left out" in line]
    assert said == [
        "lad_pl: Left out raw photos: 2 (1.CR2, 2.cr2); save them as JPEG or PNG.",
        "lad_pl: Left out broken links: 1 (noise_gone.png).",
        "lad_pl: Left out copies: 2 (noise_link.png of noise_001.png, noise_copy.png of noise_000.png).",
    ]
    assert sorted(photo["image"] for photo in ranked(calibrated)[0]["photos"]) == sorted(photos)
