"""The data module without a model: which samples are tested, and which image names are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_vlm import write_noise_images

from lad_pl.data import MultiImageData, read_annotations
from lad_pl.errors import UserError

NAMES = [f"noise_{number:03d}.png" for number in range(9)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "x").mkdir(parents=True)
    write_noise_images(tmp_path / "photos", len(NAMES), sizes=((12, 12),))
    return tmp_path


def write(folder: Path, samples: list[tuple], name: str = "annotations.json") -> str:
    """A file of samples (caption, correct image, two others)."""
    entries = [
        {"id": number, "image_ids": [*others[:1], correct, *others[1:]], "index": 1, "caption": caption}
        for number, (caption, correct, *others) in enumerate(samples)
    ]
    (folder / name).write_text(json.dumps(entries))
    return str(folder / name)


def plain(*letters: str) -> list[tuple]:
    """Samples with different captions and correct images."""
    return [(f"Caption {letter}", NAMES[place], NAMES[7], NAMES[8]) for place, letter in enumerate(letters)]


def provenance(annotations: str, images: Path, count: int = 1, **options: object) -> dict:
    data = MultiImageData(annotations, str(images), num_calibration=count, **options)
    data.setup("fit")
    return data.asked()


def remaining(data: MultiImageData, calibrated: dict, stage: str = "test") -> list[str]:
    data.setup(stage)
    data.hold_back(calibrated)
    return [sample.id for sample in data.samples]


SAME = ("Caption a", NAMES[0])
ANOTHER = (NAMES[5], NAMES[6])
REPEATS = {
    "other distractors": (*SAME, *ANOTHER),
    "the same distractors, in another order": (*SAME, NAMES[8], NAMES[7]),
    "another spelling": ("Caption a", f"./x/../{NAMES[0]}", *ANOTHER),
    "other spaces": (" Caption\n a ", NAMES[0], *ANOTHER),
    "a copy of the image": ("Caption a", "copy.png", *ANOTHER),
}


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("calibrated_in", ["the same file", "another file", "another folder"])
def test_a_calibration_question_is_never_tested(folder: Path, capsys, repeat: str, calibrated_in: str) -> None:
    photos = folder / "photos"
    shutil.copy(photos / NAMES[0], photos / "copy.png")
    first = write(folder, plain("a"), "first.json")
    calibrated = provenance(first, photos)
    if calibrated_in == "another folder":  # the published files name images from further up
        named = [(c, *(f"photos/{name}" for name in names)) for c, *names in plain("a")]
        calibrated = provenance(write(folder, named, "first.json"), folder)
    same = calibrated_in == "the same file"
    samples = [*plain("a"), *plain("x", "b", "c")[1:]] if same else plain("x", "b", "c")
    test = write(folder, [*samples, REPEATS[repeat]])
    data = MultiImageData(test, str(photos), num_calibration=1 if same else 0)
    capsys.readouterr()
    ids = remaining(data, calibrated)
    assert ids == (["1", "2"] if same else ["0", "1", "2"])
    held_back = 2 if same else 1
    assert data.num_held_back == held_back
    printed = f"{held_back} of 4 samples ask a calibration sample's question and are held back.\n"
    assert capsys.readouterr().out == printed


def test_the_samples_that_the_options_name_need_no_word(folder: Path, capsys) -> None:
    test = write(folder, plain("a", "b"))
    data = MultiImageData(test, str(folder / "photos"), num_calibration=1)
    assert remaining(data, provenance(test, folder / "photos")) == ["1"]
    assert data.num_held_back == 1 and not capsys.readouterr().out


def test_other_questions_are_tested(folder: Path, capsys) -> None:
    """The same caption for another image, another caption for the same image."""
    calibrated = provenance(write(folder, plain("a"), "first.json"), folder / "photos")
    others = [("Caption a", NAMES[1], NAMES[0], NAMES[2]), ("Caption b", *SAME[1:], *ANOTHER)]
    data = MultiImageData(write(folder, others), str(folder / "photos"), num_calibration=0)
    assert remaining(data, calibrated) == ["0", "1"]
    assert data.num_held_back == 0 and not capsys.readouterr().out


def test_num_test_counts_what_is_left(folder: Path) -> None:
    test = write(folder, [*plain("a", "b"), (*SAME, *ANOTHER), *plain("x", "y", "c", "d")[2:]])
    calibrated = provenance(test, folder / "photos")
    data = MultiImageData(test, str(folder / "photos"), num_calibration=1, num_test=3)
    assert remaining(data, calibrated) == ["1", "3", "4"]
    data.num_test = 4
    with pytest.raises(UserError, match=r"leaves 3 samples beside the 2 held back; data.num_test asks for 4"):
        remaining(data, calibrated)


def test_allowed_by_name(folder: Path, capsys) -> None:
    test = write(folder, [*plain("a", "b"), (*SAME, *ANOTHER)])
    calibrated = provenance(test, folder / "photos")
    data = MultiImageData(test, str(folder / "photos"), num_calibration=1, allow_calibration_in_test=True)
    assert remaining(data, calibrated) == ["0", "1", "2"]
    assert data.num_held_back == 0 and not capsys.readouterr().out


def test_a_calibration_of_an_earlier_version(folder: Path) -> None:
    """Its provenance has the samples alone, and those of the same file tell their questions."""
    test = write(folder, [*plain("a", "b"), (*SAME, *ANOTHER)])
    calibrated = provenance(test, folder / "photos")
    del calibrated["calibration_questions"]
    assert remaining(MultiImageData(test, str(folder / "photos"), num_calibration=0), calibrated) == ["1"]


def test_validation_and_prediction(folder: Path) -> None:
    validation = write(folder, [*plain("a", "b"), (*SAME, *ANOTHER)])
    test = write(folder, plain("a"), "first.json")
    calibrated = provenance(test, folder / "photos")
    options = {"validation_annotations": validation, "num_calibration": 1}
    assert remaining(MultiImageData(test, str(folder / "photos"), **options), calibrated, "validate") == ["1"]
    data = MultiImageData(validation, str(folder / "photos"))
    assert remaining(data, calibrated, "predict") == ["0", "1", "2"]


def test_samples_reserved_for_another_calibration(folder: Path) -> None:
    calibrated = provenance(write(folder, plain("x", "y", "z", "a")[3:], "first.json"), folder / "photos")
    data = MultiImageData(write(folder, plain("a", "b")), str(folder / "photos"), num_calibration=1)
    with pytest.raises(UserError, match=r"1 samples of .* are held back for calibration, but the calibration was made"):
        remaining(data, calibrated)


# ------------------------------------------------------------------------------------------------- image names


@pytest.mark.parametrize("name", ["../photos/noise_000.png", "/etc/b.png", "a/../../b.png", "..\\b.png", "C:\\b"])
def test_names_that_lead_outside(folder: Path, name: str) -> None:
    test = write(folder, [("Caption", name, NAMES[1], NAMES[2])])
    data = MultiImageData(test, str(folder / "photos"))
    with pytest.raises(UserError, match=r"Sample 0: the image name .* leads out of the image folder") as error:
        data.setup("predict")
    assert "--data.allow_outside true" in str(error.value)


def test_names_that_lead_outside_by_choice(folder: Path) -> None:
    (folder / "photos" / "linked").symlink_to(folder / "photos")
    inside = [("Caption", f"linked/{NAMES[0]}", f"x/../{NAMES[1]}", NAMES[2])]
    MultiImageData(write(folder, inside), str(folder / "photos")).setup("predict")
    outside = write(folder, [("Caption", f"../photos/{NAMES[0]}", str(folder / "photos" / NAMES[1]), NAMES[2])])
    MultiImageData(outside, str(folder / "photos"), allow_outside=True).setup("predict")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_two_names_of_one_file(folder: Path, link) -> None:
    link(folder / "photos" / NAMES[0], folder / "photos" / "other.png")
    data = MultiImageData(write(folder, [("Caption", NAMES[1], "other.png", NAMES[0])]), str(folder / "photos"))
    with pytest.raises(UserError, match=r"Sample 0 shows the same image twice: 'other.png' and 'noise_000.png'"):
        data.setup("predict")


def test_copies_of_the_correct_image(folder: Path) -> None:
    photos = folder / "photos"
    shutil.copy(photos / NAMES[0], photos / "copy.png")
    others_alike = write(folder, [("Caption", NAMES[1], "copy.png", NAMES[0])])
    MultiImageData(others_alike, str(photos)).setup("predict")
    data = MultiImageData(write(folder, [("Caption", NAMES[0], "copy.png", NAMES[1])]), str(photos))
    with pytest.raises(UserError, match=r"Sample 0: 'copy.png' is an exact copy of the correct image 'noise_000.png'"):
        data.setup("predict")


def test_the_folder_that_fits_is_named(folder: Path, monkeypatch) -> None:
    names = [(caption, *(f"photos/{name}" for name in images)) for caption, *images in plain("a", "b")]
    test = write(folder, names)
    monkeypatch.chdir(folder)
    for images in (str(folder / "photos"), "photos"):
        with pytest.raises(UserError, match=f"{NAMES[7]} does; name that folder: --data.images {folder}$"):
            MultiImageData(test, images).setup("predict")
    MultiImageData(test, str(folder)).setup("predict")
    assert len(read_annotations(test)) == 2
