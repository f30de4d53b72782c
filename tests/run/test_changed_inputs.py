"""Stored evidence is of the pictures themselves, and of the calibration that was used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import fails, noise_options
from PIL import Image
from stages import Run
from tiny_vlm import write_noise_images

from lad_pl import UserError
from lad_pl.analysis.stored_run import StoredRun
from lad_pl.cli import main
from lad_pl.data import PhotoData
from lad_pl.evidence import read_prompts


@pytest.fixture
def options(tiny_folder: Path, fitted: Path, tmp_path: Path) -> list[str]:
    """After fit on two samples."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    return [*noise_options(tiny_folder, tmp_path), "--data.num_permutations=2"]


def test_other_pictures_under_the_same_names(options: list[str], tmp_path: Path, capsys) -> None:
    assert main(["test", *options]) == 0
    before = (tmp_path / "run" / "predictions.jsonl").read_text()
    sample = json.loads((tmp_path / "data" / "annotations.json").read_text())[4]
    path = tmp_path / "data" / sample["image_ids"][0]
    with Image.open(path) as image:
        image.rotate(180).save(path)
    assert "results of another configuration (image files have changed since)" in fails(capsys, "test", *options)
    assert main(["test", *options, "--model.overwrite=true"]) == 0
    assert (tmp_path / "run" / "predictions.jsonl").read_text() != before


def test_a_picture_that_changed_in_its_middle(run: Run) -> None:
    """Of the same size, with the same beginning and end, as a file that was damaged and is whole again."""
    annotations = run.folder.parent / "data" / "annotations.json"
    samples = json.loads(annotations.read_text())
    name = Path(samples[7]["image_ids"][2]).with_suffix(".bmp").name  # of the last sample alone
    large = Image.effect_noise((200, 200), 90).convert("RGB")
    large.save(annotations.parent / name)
    samples[7]["image_ids"][2] = name
    annotations.write_text(json.dumps(samples))
    assert run("test") == 6
    content = bytearray((annotations.parent / name).read_bytes())
    content[40_000:80_000] = bytes(40_000)
    (annotations.parent / name).write_bytes(content)
    assert "image files have changed since" in run.refused("test")
    assert run("test", overwrite=True) == 1


def test_a_calibration_made_anew_since(options: list[str], tmp_path: Path) -> None:
    assert main(["test", *options]) == 0
    assert StoredRun(tmp_path / "run").calibration.num_samples == 2
    assert main(["fit", *options, "--data.num_calibration=1", "--model.overwrite=true"]) == 0
    with pytest.raises(UserError, match="has been made on other samples since test used it"):
        _ = StoredRun(tmp_path / "run").calibration


# ------------------------------------------------------------------------- what stays when samples change, come and go


def test_predict_and_test_take_each_others_evidence_and_leave_each_others_files(run: Run) -> None:
    """Of 8 samples, 6 are tested; the two for calibration are left."""
    assert run("test") == 6
    before = contents(run.folder)
    assert run("predict") == 2
    after = contents(run.folder)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"run.json", "predict_predictions.jsonl", "predict_evidence.parquet"}
    tested, predicted = (
        {(row["id"], *row["permutation"]): row for row in map(json.loads, after[name].decode().splitlines())}
        for name in ("predictions.jsonl", "predict_predictions.jsonl")
    )
    assert len(predicted) == len(tested) + 2 * 2
    assert all(predicted[key]["scores"]["agd"] == row["scores"]["agd"] for key, row in tested.items())


def test_only_what_changed_is_computed_anew(run: Run) -> None:
    """A picture is broken; then a caption is rewritten, and samples come, go and move under other ids."""
    annotations = run.folder.parent / "data" / "annotations.json"
    samples = json.loads(annotations.read_text())
    broken = annotations.parent / samples[7]["image_ids"][2]  # of the last sample alone
    picture = broken.read_bytes()
    broken.write_bytes(picture[: len(picture) // 2])
    assert f"{broken} cannot be read" in run.refused("test")
    stored = len(run.sizes)
    broken.write_bytes(picture)
    assert run("test") == 6 - stored
    samples[3]["caption"] += " anew"
    other = {**samples[7], "image_ids": samples[0]["image_ids"]}
    samples = [*samples[:2], samples[6], samples[3], samples[5], samples[2], other]
    annotations.write_text(json.dumps([{**sample, "id": f"new {number}"} for number, sample in enumerate(samples)]))
    assert "the annotation file has changed, or the calibration whose samples are held back" in run.refused("test")
    assert run("test", overwrite=True) == 2
    anew = Run(run.module, run.folder.parent / "anew", run.sizes)
    anew.folder.mkdir()
    shutil.copy(run.folder / "calibration.ckpt", anew.folder)
    assert anew("test") == 5
    for name in ("predictions.jsonl", "metrics.json"):
        assert (run.folder / name).read_bytes() == (anew.folder / name).read_bytes()
    ours, theirs = (read_prompts(folder / "evidence.parquet") for folder in (run.folder, anew.folder))
    assert (ours.ids, ours.sample_index.tolist()) == (theirs.ids, theirs.sample_index.tolist())


def test_a_few_samples_first_and_then_all_of_them(run: Run) -> None:
    assert run("test", num_test=2) == 2
    assert "(--data.num_test: 2 there, 'all' here)" in run.refused("test")
    assert run("test", overwrite=True) == 4
    whole = (run.folder / "predictions.jsonl").read_bytes()
    assert run("test", overwrite=True, num_test=2) == 0
    assert run("test", overwrite=True) == 0  # the evidence of the others was kept meanwhile
    assert (run.folder / "predictions.jsonl").read_bytes() == whole
    assert "--data.num_calibration: 2 there, 3 here)" in run.refused("fit", num_calibration=3)
    assert run("fit", overwrite=True, num_calibration=3) == 1


def test_a_sample_that_is_asked_twice(run: Run) -> None:
    annotations = run.folder.parent / "data" / "annotations.json"
    samples = json.loads(annotations.read_text())
    annotations.write_text(json.dumps([*samples[:4], {**samples[3], "id": "again"}]))
    assert run("test") == 3
    assert read_prompts(run.folder / "evidence.parquet").ids == ("2", "2", "3", "3", "again", "again")


def test_a_photo_or_a_caption_more_or_less(run: Run, tmp_path: Path) -> None:
    album = tmp_path / "album"
    write_noise_images(album, 30)

    def computed(*captions: str) -> int:
        photos = PhotoData([str(album)], list(captions), group_size=3, rounds=1, num_permutations=2)
        return run("predict", photos)

    whole = computed("a dog")
    assert computed("a dog", "a cat") == whole
    assert computed("a cat") == 0
    (tmp_path / "moved").symlink_to(album.rename(tmp_path / "elsewhere"))
    album = tmp_path / "moved"
    gone = (album / "noise_007.png").rename(tmp_path / "gone.png")
    assert 0 < computed("a dog") <= whole / 2
    gone.rename(album / "noise_007.png")
    assert computed("a dog") == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
