"""MMIU, MuirBench and tables of one's own, as small files in the published formats with noise for images."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from paths import CONFIGS
from PIL import Image
from tiny_vlm import noise_image, write_noise_images

from lad_pl.cli import main
from lad_pl.data import read_annotations
from lad_pl.data.prepare.custom_table import table
from lad_pl.data.prepare.mmiu import _context, mmiu
from lad_pl.data.prepare.muirbench import muirbench
from lad_pl.data.prepare.questions import (
    QUESTION_TEMPLATE,
    AnnotationWriter,
    ImageFolder,
    SkipItem,
    check_order_free,
    letter_index,
    option_images,
    split_options,
)
from lad_pl.data.prepare.table_reader import read_rows
from lad_pl.errors import UserError

FOUR = "A: the first image\nB: the second image\nC: the third image\nD: the fourth image"
TWO = "A: image 1\nB: image 2"


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    noise_image(np.random.default_rng(seed), (24, 32)).save(buffer, kind)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ options and answers


@pytest.mark.parametrize(
    ("options", "places"),
    [
        (["the first image", "The second image ", "the third image", "The forth image"], [0, 1, 2, 3]),
        (["Image 2", "image 1"], [1, 0]),
        (["Figure #1", "Figure #2"], [0, 1]),
        (["the 2nd picture.", "the 1st picture."], [1, 0]),
        (["", ""], [0, 1]),
        (["A", "B"], [0, 1]),
        (["Image B", "Image A"], [1, 0]),
        (["<image>", "<image>"], [0, 1]),
    ],
)
def test_options_that_name_images(options: list[str], places: list[int]) -> None:
    assert option_images(options, len(options)) == places


@pytest.mark.parametrize(
    ("options", "images", "reason"),
    [
        (["Yes", "No"], 2, "texts"),
        (["The sky in the first image", "The second image"], 2, "texts"),
        (["the second image", "the third image"], 3, "more images than options"),
        (["the first image", "the second image", "neither"], 2, "more options than images"),
        (["the second image", "the third image"], 2, "every image once"),
        (["the first image", "the first image"], 2, "every image once"),
        (["image 0", "image 1"], 2, "every image once"),
    ],
)
def test_options_that_do_not(options: list[str], images: int, reason: str) -> None:
    with pytest.raises(SkipItem, match=reason):
        option_images(options, images)


def test_lettered_lines() -> None:
    assert split_options("A:The first image\nB) x\n(C) y\nD. z\n") == ["The first image", "x", "y", "z"]
    assert split_options("A\nB") == ["", ""]
    for text in ("the first\nthe second", "A: x\nC: y", "B: x"):
        with pytest.raises(SkipItem, match="not lettered"):
            split_options(text)


def test_letters() -> None:
    assert [letter_index(letter) for letter in ("A", "(D)", "c.", " B ")] == [0, 3, 2, 1]
    for missing in (None, "", " "):
        with pytest.raises(SkipItem, match="no answer"):
            letter_index(missing)
    with pytest.raises(SkipItem, match="no letter"):
        letter_index("AB")


# -------------------------------------------------------------------------------------------------------------- MMIU


def mmiu_item(task: str, number: int, count: int = 4, **changes: Any) -> dict[str, Any]:
    options = "\n".join(FOUR.splitlines()[:count])
    paths = [f"./Low-level-semantic/{task}/{task}_{number}_{place}.png" for place in range(count)]
    item = {
        "task": task,
        "visual_input_component": "natural image",
        "source": "noise",
        "options": options + "\n",
        "question": "Which image is most likely to be a real photograph?",
        "context": f"You are a judge.\nSelect from the following choices.\n{options}\n",
        "input_image_path": paths,
        "output": "ABCD"[number % count],
    }
    return {key: value for key, value in (item | changes).items() if value is not ...}


def write_mmiu(folder: Path, items: list[dict[str, Any]], prefix: str = "Low-level-semantic/") -> Path:
    for seed, path in enumerate(path for item in items for path in item["input_image_path"]):
        name = folder / path.replace("Low-level-semantic/", prefix)
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(encoded(seed))
    (folder / "all.json").write_text(json.dumps(items))
    return folder / "all.json"


def test_mmiu_items_become_samples(tmp_path: Path) -> None:
    shuffled = "A: The fourth image\nB: The first image\nC: The second image\nD: The third image"
    items = [mmiu_item("forensic", number) for number in range(3)]
    items += [mmiu_item("forensic", 3, options=shuffled, output="A", context="")]
    items += [mmiu_item("quality", 0, 2, context="Candidates: A. the first image B. the second image", output="B")]
    annotations = write_mmiu(tmp_path / "images", items)
    mmiu(str(annotations), str(tmp_path / "images"), str(tmp_path / "out"))
    samples = read_annotations(tmp_path / "out/forensic_4.json")
    assert [sample.target for sample in samples] == [0, 1, 2, 3]
    assert [sample.id for sample in samples] == ["forensic_0", "forensic_1", "forensic_2", "forensic_3"]
    assert samples[0].images[1] == "Low-level-semantic/forensic/forensic_0_1.png"
    assert samples[0].caption == "You are a judge.\nWhich image is most likely to be a real photograph?"
    assert samples[3].caption == "Which image is most likely to be a real photograph?"
    (pair,) = read_annotations(tmp_path / "out/quality_2.json")
    assert pair.target == 1 and pair.caption == "Which image is most likely to be a real photograph?"


def test_mmiu_images_without_the_folder_of_the_kind(tmp_path: Path) -> None:
    annotations = write_mmiu(tmp_path, [mmiu_item("forensic", 0)], prefix="")
    mmiu(str(annotations), str(tmp_path), str(tmp_path / "out"))
    (sample,) = read_annotations(tmp_path / "out/forensic_4.json")
    assert sample.images[0] == "forensic/forensic_0_0.png"


def test_mmiu_counts_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "A: The second image\nB: The third image\nC: The fourth image"
    items = [
        mmiu_item("forensic", 0),
        mmiu_item("q_bench+", 0, 2, options="A: No\nB: Yes\n"),
        mmiu_item("q_bench+", 1, 2, options="A: Yes\nB: No\n"),
        mmiu_item("face_retrieval", 0, options=query, question="The query image is the first image."),
        mmiu_item("forensic", 1, output=...),
        mmiu_item("forensic", 2, output=None),
        mmiu_item("forensic", 3, output="E"),
        mmiu_item("forensic", 4, options=...),
        mmiu_item("forensic", 5, question="Which is like the first image?"),
        mmiu_item("forensic", 6, input_image_path=["x.png", "y.png"], options=TWO, output="A", context=""),
        mmiu_item("forensic", 7, input_image_path=["../a.png", "/etc/b.png"], options=TWO, output="A", context=""),
        mmiu_item("forensic", 8),
        mmiu_item("forensic", 9, 2, input_image_path=2 * ["./Low-level-semantic/forensic/forensic_0_0.png"]),
    ]
    annotations = write_mmiu(tmp_path, [items[0], items[11]])
    broken = tmp_path / "Low-level-semantic/forensic/forensic_8_2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    annotations.write_text(json.dumps(items))
    mmiu(str(annotations), str(tmp_path), str(tmp_path / "out"))
    out = capsys.readouterr().out
    assert "1 of 13 items have one of their images as the answer" in out
    assert "Left out 12:" in out
    for line in (
        "2: the options are texts, not the images (first: q_bench+_0, item 1)",
        "2: no answer (first: forensic_1, item 4)",
        "1: more images than options (images that are shown, but cannot be the answer) (first: face_retrieval_0,",
        "1: the answer is none of the options (first: forensic_3",
        "1: no options (first: forensic_4",
        "1: the question refers to an image by its position",
        "1: an image file is missing",
        "1: an image outside the image folder",
        "1: an image file cannot be read (first: forensic_8",
        "1: the same image twice",
    ):
        assert f"  {line}" in out, line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["forensic_4.json", "forensic_4.yaml"]


def test_mmiu_tasks_are_chosen_by_name(tmp_path: Path) -> None:
    annotations = write_mmiu(tmp_path, [mmiu_item("forensic", 0), mmiu_item("quality", 0, 2)])
    mmiu(str(annotations), str(tmp_path), str(tmp_path / "out"), tasks=["quality"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["quality_2.json", "quality_2.yaml"]
    with pytest.raises(UserError, match="no task 'emotion'; it has: forensic, quality"):
        mmiu(str(annotations), str(tmp_path), str(tmp_path / "out2"), tasks=["emotion"])
    assert not (tmp_path / "out2").exists()


def test_mmiu_with_nothing_that_fits(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps([mmiu_item("forensic", 0)]))
    with pytest.raises(UserError, match=r"none of 1 items can be used. 1: an image file is missing in .*forensic_0"):
        mmiu(str(tmp_path / "all.json"), str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "coco.json").write_text('[{"image_id": 1, "caption": "a"}]')
    with pytest.raises(UserError, match=r"has no column 'task' .*it has: image_id, caption"):
        mmiu(str(tmp_path / "coco.json"), str(tmp_path))


# --------------------------------------------------------------------------------------------------- MMIU's configs

TASKS = {
    "forensic_detection_forgerynet": 4,
    "forensic_detection_blink": 4,
    "emotion_recognition_expw": 4,
    "emotion_recognition_findingemo": 4,
    "text2image_retrieval": 4,
    "visual_quality_assessment_ve_lol_l": 2,
}


def test_the_six_tasks_have_the_configuration_that_prepare_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folders that the configurations name, `prepare mmiu` would write the same."""
    monkeypatch.chdir(tmp_path)
    items = [mmiu_item(task, 0, count) for task, count in TASKS.items()]
    write_mmiu(Path("data/mmiu"), items)
    mmiu("data/mmiu/all.json", "data/mmiu")
    assert {path.stem for path in (CONFIGS / "mmiu").glob("*.yaml")} == set(TASKS)
    for task, count in TASKS.items():
        shipped = yaml.safe_load((CONFIGS / "mmiu" / f"{task}.yaml").read_text())
        assert shipped == yaml.safe_load(Path(f"data/mmiu/{task}_{count}.yaml").read_text())
        assert shipped["model"]["prompt"]["template"] == QUESTION_TEMPLATE


@pytest.mark.parametrize("task", ["text2image_retrieval", "visual_quality_assessment_ve_lol_l"])
def test_a_task_composes_with_a_model(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--config={CONFIGS / 'qwen.yaml'}", f"--config={CONFIGS / 'mmiu' / task}.yaml", "--print_config"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *arguments])
    assert exit_.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["vlm"]["path"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert config["model"]["prompt"]["template"] == QUESTION_TEMPLATE
    data = config["data"]["init_args"]
    assert data["annotations"] == f"data/mmiu/{task}_{TASKS[task]}.json"
    assert data["batch_size"] == 2 and data["num_permutations"] == (2 if TASKS[task] == 2 else 5)
    assert config["trainer"]["default_root_dir"] == "checkpoints/qwen2.5-vl-3b"


def test_from_mmiu_to_metrics(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images, a question as prompt, the shipped configurations, a tiny model of that class."""
    task = "visual_quality_assessment_ve_lol_l"
    monkeypatch.chdir(tmp_path)
    write_mmiu(Path("data/mmiu"), [mmiu_item(task, number, 2) for number in range(8)])
    mmiu("data/mmiu/all.json", "data/mmiu")
    options = [
        f"--config={CONFIGS / 'qwen.yaml'}",
        f"--config={CONFIGS / 'mmiu' / task}.yaml",
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.layers=3-5",
        "--data.num_workers=0",
        "--trainer.default_root_dir=run",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["fit", *options]) == 0
    assert main(["test", *options]) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert (metrics["num_samples"], metrics["num_candidates"], metrics["num_permutations"]) == (3, 2, 2)


# ---------------------------------------------------------------------------------------------------------- MuirBench


def muir_item(
    idx: str, options: list[str], answer: str, question: str = "Which one shows a bus?", **changes: Any
) -> Any:
    count = " ".join([question, *options]).count("<image>")
    images = [{"bytes": encoded(hash_of(idx) + k, "JPEG"), "path": f"{idx}_{k}.jpg"} for k in range(count)]
    return {
        "idx": idx,
        "task": "Image-Text Matching",
        "image_relation": "Independent",
        "image_type": "Photography",
        "question": question,
        "options": options,
        "answer": answer,
        "image_list": images,
        "counterpart_idx": "0",
    } | changes


def hash_of(idx: str) -> int:
    return 10 * int(idx)


NONE = "None of the choices provided"
MUIR = [
    muir_item("1", ["<image>", "<image>", "<image>", NONE], "B"),
    muir_item("2", ["<image>", NONE, "<image>", "<image>"], "C"),
    muir_item("3", ["<image>", "<image>", "<image>", NONE], "D"),
    muir_item("4", ["One", "Two", NONE], "A", question="How many? <image> <image>"),
    muir_item("5", ["<image>", "<image>", NONE], "A", question="Which one is of the same place as <image>?"),
    muir_item("6", ["<image>", "<image>", NONE], "E"),
    muir_item("7", ["<image>", "<image>", NONE], "A"),
    muir_item("8", ["<image>", "<image>", NONE], "B"),
]
MUIR[6]["image_list"][1] = {"bytes": b"no image", "path": "7_1.jpg"}
MUIR[7]["image_list"] = 2 * MUIR[7]["image_list"][:1]


def write_muir(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(MUIR), path)
    return path


def test_muirbench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    muirbench(str(write_muir(tmp_path / "test.parquet")), str(tmp_path / "out"))
    samples = read_annotations(tmp_path / "out/Image-Text_Matching_3.json")
    assert [(sample.id, sample.target) for sample in samples] == [("1", 1), ("2", 1)]  # without the option in between
    assert samples[0].caption == "Which one shows a bus?"
    for sample, item in zip(samples, MUIR, strict=False):
        contents = [(tmp_path / "out/images" / name).read_bytes() for name in sample.images]
        assert contents == [image["bytes"] for image in item["image_list"]]
        assert all(name.endswith(".jpeg") for name in sample.images)
    out = capsys.readouterr().out
    assert "2 of 8 items" in out and "Left out 6:" in out
    for line in (
        "unanswerable (the answer is 'None of the choices provided') (first: row 3, idx 3)",
        "the options are texts, not the images (first: row 4",
        "an image in the question, which cannot be the answer (first: row 5",
        "the answer is none of the options (first: row 6",
        "an embedded image cannot be read (first: row 7",
        "the same image twice",
    ):
        assert f"  1: {line}" in out, line


def test_the_same_picture_is_written_once(tmp_path: Path) -> None:
    twin = MUIR[0] | {"idx": "99"}
    pq.write_table(pa.Table.from_pylist([MUIR[0], twin]), tmp_path / "test.parquet")
    muirbench(str(tmp_path / "test.parquet"), str(tmp_path / "out"))
    first, second = read_annotations(tmp_path / "out/Image-Text_Matching_3.json")
    assert first.images == second.images
    assert len(list((tmp_path / "out/images").iterdir())) == 3


def test_muirbench_as_a_local_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub's folder, whose Parquet files declare the column to be images; they are not decoded on the way."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {key: datasets.Value("string") for key in MUIR[0] if key not in ("options", "image_list")}
        | {"options": datasets.List(datasets.Value("string")), "image_list": datasets.List(datasets.Image())}
    )
    stored = datasets.Dataset.from_list(MUIR[:3], features=features)
    (tmp_path / "hub/data").mkdir(parents=True)
    stored.to_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet")
    muirbench(str(tmp_path / "hub"), str(tmp_path / "out"))
    sample = read_annotations(tmp_path / "out/Image-Text_Matching_3.json")[0]
    content = (tmp_path / "out/images" / sample.images[0]).read_bytes()
    assert content == MUIR[0]["image_list"][0]["bytes"]  # byte for byte
    stored.save_to_disk(tmp_path / "saved")
    capsys.readouterr()
    muirbench(str(tmp_path / "saved"), str(tmp_path / "out2"))
    assert "2 of 3 items" in capsys.readouterr().out
    datasets.DatasetDict({"dev": stored, "test": stored}).save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match="several splits; choose with --split: dev, test"):
        muirbench(str(tmp_path / "both"), str(tmp_path / "out3"))
    with pytest.raises(UserError, match="no split 'train'; choose with --split: dev, test"):
        muirbench(str(tmp_path / "both"), str(tmp_path / "out3"), split="train")
    muirbench(str(tmp_path / "both"), str(tmp_path / "out3"), split="dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded: The directory"):
        muirbench(str(tmp_path / "empty"))


def test_the_hub_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        muirbench(output=str(tmp_path / "out"))
    assert str(error.value).startswith("The Hugging Face hub cannot be reached for MUIRBENCH/MUIRBENCH.")
    assert "hf download --repo-type dataset MUIRBENCH/MUIRBENCH --local-dir my_folder" in str(error.value)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return [path.name for path in write_noise_images(tmp_path, 6, sizes=((20, 30),))]


def rows_of(photos: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": f"q{k}", "question": f"Which is {k}?", "images": photos[k : k + 3], "answer_index": k} for k in range(3)
    ]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_table_in_jsonl(tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(photos)
    rows[2] |= {"images": photos[:2], "options": ["Image 2", "Image 1"], "answer_index": 0}
    table(jsonl(tmp_path / "mine.jsonl", rows), str(tmp_path / "out"))
    three = read_annotations(tmp_path / "out/mine_3.json")
    assert [(sample.id, sample.target) for sample in three] == [("q0", 0), ("q1", 1)]
    assert three[1].images == tuple(photos[1:4]) and three[1].caption == "Which is 1?"
    (two,) = read_annotations(tmp_path / "out/mine_2.json")
    assert two.target == 1  # the option that names image 2
    config = yaml.safe_load((tmp_path / "out/mine_2.yaml").read_text())
    assert config["data"]["init_args"]["images"] == str(tmp_path)
    assert config["data"]["init_args"]["num_permutations"] == 2
    assert config["model"]["prompt"]["template"] == QUESTION_TEMPLATE
    assert "Left out" not in capsys.readouterr().out


def test_captions_keep_the_papers_prompt(tmp_path: Path, photos: list[str]) -> None:
    rows = [{"caption": "The first image of spring", "images": photos[:3], "answer_index": 2}]
    table(jsonl(tmp_path / "mine.jsonl", rows), str(tmp_path / "out"))
    (sample,) = read_annotations(tmp_path / "out/mine_3.json")
    assert sample.caption == "The first image of spring" and sample.id == "line 1"
    assert "model" not in yaml.safe_load((tmp_path / "out/mine_3.yaml").read_text())


@pytest.mark.parametrize(
    ("style", "given"), [("index", 2), ("index", "2"), ("number", 3), ("letter", "C"), ("none", 9)]
)
def test_styles_of_answers(tmp_path: Path, photos: list[str], style: Any, given: Any) -> None:
    rows = [{"question": "Which?", "images": photos[:3], "answer_index": given}]
    table(jsonl(tmp_path / "mine.jsonl", rows), str(tmp_path / "out"), answer=style)
    (sample,) = read_annotations(tmp_path / "out/mine_3.json")
    assert sample.target == (None if style == "none" else 2)


def test_csv_with_one_column_per_image(tmp_path: Path, photos: list[str]) -> None:
    """As BLINK has it: image_1 to image_4, the last empty where there are three; answers like (B)."""
    with (tmp_path / "blink.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "prompt", "image_1", "image_2", "image_3", "image_4", "right"])
        writer.writerow(["007", "Which, of these?", *photos[:4], "(D)"])
        writer.writerow(["None", "Which?", *photos[:3], "", "(B)"])
        writer.writerow(["3", "Which?", photos[0], "", *photos[1:3], "(D)"])
    columns = {"id": "key", "question": "prompt", "images": "image_1,image_2,image_3,image_4", "answer": "right"}
    table(str(tmp_path / "blink.csv"), str(tmp_path / "out"), columns, answer="letter")
    (four,) = read_annotations(tmp_path / "out/blink_4.json")
    assert (four.id, four.target, four.caption) == ("007", 3, "Which, of these?")
    (three,) = read_annotations(tmp_path / "out/blink_3.json")
    assert (three.id, three.target) == ("None", 1)


def test_parquet_with_embedded_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"text": "a dog", "pictures": [encoded(3 * row + place) for place in range(3)], "label": row}
        for row in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    columns = {"caption": "text", "images": "pictures", "answer": "label"}
    table(str(tmp_path / "set.parquet"), str(tmp_path / "out"), columns)
    samples = read_annotations(tmp_path / "out/set_3.json")
    assert [sample.target for sample in samples] == [0, 1, 2]
    assert (tmp_path / "out/images" / samples[1].images[2]).read_bytes() == rows[1]["pictures"][2]
    assert "17: the answer is none of the options (first: row 4)" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "out/set_3.yaml").read_text())
    assert config["data"]["init_args"]["images"] == str(tmp_path / "out/images")


def test_empty_pictures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Null, no bytes, no bytes under a name; in a list, a picture that is lost makes no smaller sample."""
    empty: list[Any] = [
        None,
        {"bytes": None, "path": None},
        {"bytes": b"", "path": None},
        {"bytes": b"", "path": "a.png"},
    ]
    whole = [{"bytes": encoded(number), "path": None} for number in range(3)]
    shown = [whole, *([*whole[:2], lost] for lost in empty), *([lost, *whole[:2]] for lost in empty)]
    rows = [{"caption": "a dog\n\ton grass", "images": images, "answer_index": 1} for images in shown]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    table(str(tmp_path / "set.parquet"), str(tmp_path / "out"))
    assert "  8: an empty image (first: row 2)" in capsys.readouterr().out
    (sample,) = read_annotations(tmp_path / "out/set_3.json")
    assert sample.caption == "a dog on grass"
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["set_3.json"]
    items = [
        muir_item("1", ["<image>", "<image>", NONE], "B"),
        *(muir_item(str(k), ["<image>", "<image>", NONE], "B") for k in (2, 3)),
    ]
    items[1]["image_list"][1], items[2]["image_list"][0] = empty[2], None
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "muir.parquet")
    muirbench(str(tmp_path / "muir.parquet"), str(tmp_path / "muir"))
    assert "  2: an empty image (first: row 2, idx 2)" in capsys.readouterr().out


def test_json_list_and_absolute_paths_within_the_folder(tmp_path: Path, photos: list[str]) -> None:
    rows = rows_of([str(tmp_path / name) for name in photos])
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/mine.json").write_text(json.dumps(rows))
    table(str(tmp_path / "lists/mine.json"), str(tmp_path / "out"), images=str(tmp_path))
    assert read_annotations(tmp_path / "out/mine_3.json")[0].images == tuple(photos[:3])


def test_bad_rows_are_counted(tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    good = rows_of(photos)[0]
    changes: list[dict[str, Any]] = [
        {"id": "q0"},
        {"question": None},
        {"images": photos[:1]},
        {"images": [*photos[:2], "gone.png"]},
        {"images": [*photos[:2], 7]},
        {"answer_index": 3},
        {"answer_index": -1},
        {"answer_index": None},
        {"answer_index": True},
        {"options": ["a cat", "a dog", "a cow"]},
        {"options": ["image 1", "image 2"]},
        {"images": 3 * photos[:1]},
    ]
    rows = [good, *({**good, "id": f"x{number}"} | change for number, change in enumerate(changes))]
    table(jsonl(tmp_path / "mine.jsonl", rows), str(tmp_path / "out"))
    out = capsys.readouterr().out
    assert "1 of 13 items" in out and "Left out 12:" in out
    for line in (
        "1: an id that came before (first: line 2, id q0)",
        "1: no question (first: line 3, id x1)",
        "1: fewer than two images",
        f"1: an image file is missing in {tmp_path}",
        "1: an image that is neither a path nor embedded",
        "1: the answer is none of the options",
        "2: the answer is no index (first: line 8, id x6)",
        "1: no answer",
        "1: the options are texts, not the images",
        "1: more images than options",
        "1: the same image twice",
    ):
        assert f"  {line}" in out, line


def test_files_that_a_strangers_table_names(tmp_path: Path) -> None:
    """All three commands take images from the image folder alone, and wait for no pipe."""
    write_noise_images(tmp_path / "own", 2)
    (outside,) = write_noise_images(tmp_path / "private", 1)
    os.mkfifo(tmp_path / "own" / "pipe.png")
    for name, reason in (
        (str(outside), "outside"),
        ("../private/noise_000.png", "outside"),
        ("/etc/passwd", "outside"),
        ("pipe.png", "no regular file"),
        ("x" * 5000, "missing"),
    ):
        row = {"question": "?", "images": ["noise_000.png", name], "answer_index": 0}
        with pytest.raises(UserError, match=f"1: an image .*{reason}"):
            table(jsonl(tmp_path / "own/mine.jsonl", [row]), str(tmp_path / "out"))
        (item,) = [mmiu_item("task", 0, 2, input_image_path=["noise_000.png", name])]
        with pytest.raises(UserError, match=f"1: an image .*{reason}"):
            mmiu(jsonl(tmp_path / "all.jsonl", [item]), str(tmp_path / "own"), str(tmp_path / "out"))
        muir = muir_item("1", ["<image>", "<image>", NONE], "B")
        muir["image_list"] = [{"bytes": None, "path": name}, {"bytes": None, "path": "noise_000.png"}]
        pq.write_table(pa.Table.from_pylist([muir]), tmp_path / "muir.parquet")
        with pytest.raises(UserError, match=r"1: an image .*(outside|missing)"):
            muirbench(str(tmp_path / "muir.parquet"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_damaged_pages_name_the_file(tmp_path: Path) -> None:
    """The footer is whole; what is wrong is found while the rows are read."""
    path = tmp_path / "set.parquet"
    rows = [{"text": f"caption {number}" * 20, "number": number} for number in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True)
    whole = path.read_bytes()
    for start, damage in ((4, b"\xff" * 64), (4, bytes(64)), (len(whole) // 2, b"\x55" * 64)):
        path.write_bytes(whole[:start] + damage + whole[start + len(damage) :])
        with pytest.raises(UserError, match=r"set.parquet is damaged \(.*\); fetch it again") as error:
            list(read_rows(str(path)))
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    assert len(list(read_rows(str(path)))) == 2000


def test_embedded_and_paths_do_not_mix(tmp_path: Path, photos: list[str]) -> None:
    images = [{"bytes": encoded(0), "path": None}, {"bytes": None, "path": photos[0]}]
    pq.write_table(
        pa.Table.from_pylist([{"question": "?", "images": images, "answer_index": 0}]), tmp_path / "mixed.parquet"
    )
    with pytest.raises(UserError, match="some images are embedded and others are paths"):
        table(str(tmp_path / "mixed.parquet"), str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"id": 1}\n{"id": 2\n', "line 2 is not valid JSON"),
        ("a.jsonl", '{"id": 1}\n\n{"id": 2}\n', "line 2 is empty"),
        ("a.jsonl", '{"id": 1}\n[2]\n', "line 2 is not a JSON object"),
        ("a.jsonl", '{"id": 1}\n{"id": 2, "id": 3}\n', "line 2 is not valid JSON: an object has the key 'id' twice"),
        ("a.json", '[{"id": 2, "id": 3}]', "an object has the key 'id' twice"),
        ("a.jsonl", "", "has no rows"),
        ("a.json", '{"id": 1}\n{"id": 2}\n', "is not valid JSON: Extra data.*Name it .jsonl"),
        ("a.json", '{"id": 1}', "must hold a JSON list of objects"),
        ("a.csv", "id,images\n1,a.png\n2\n", "line 3 has not as many cells"),
        ("a.csv", 'id,images\n1,"a.png\n', "line 2: not valid CSV: unexpected end.* a quotation mark"),
        ("a.csv", 'id,images\n1,a.png\n2,b.png\n3,"b"x.png\n4,c.png\n', "line 4: not valid CSV: ',' expected"),
        ("a.csv", 'id,images\n1,a.png\n2,"b.png\n3,c.png\n4,d.png\n', "lines 3 to 5: not valid CSV: unexpected end"),
        ("a.csv", "id,images\n1,a.png\n2," + "x" * 140_000 + "\n", "line 3: a cell has more than 131,072 .*as JSONL"),
        ("a.csv", "id,caption,images,caption\n1,x,a.png,y\n", "two columns named 'caption'; rename or delete one"),
        ("a.csv", "id,images\n", "has no rows"),
        ("a.parquet", "PAR1 and no more", "is no complete Parquet file"),
        ("a.xlsx", "x", "'.xlsx' is no table that can be read; give .jsonl"),
    ],
)
def test_malformed_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_tables_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_rows(str(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match="does not exist, and is no data set's id"):
        read_rows("my/own/table")
    (tmp_path / "latin.jsonl").write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_rows(str(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_byte_order_marks(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"marked.{suffix}"
    content = {"jsonl": '{"id": "é"}\r\n', "json": '[{"id": "é"}]', "csv": "id\r\né\r\n"}[suffix]
    path.write_text(content, encoding="utf-8-sig", newline="")
    assert [row for _, row in read_rows(str(path))] == [{"id": "é"}]
    path.write_text(content, encoding="utf-16")
    with pytest.raises(UserError, match="is UTF-16 text; save it as UTF-8"):
        read_rows(str(path))


def test_wrong_columns_name_what_there_is(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "mine.jsonl", [{"text": "x", "images": [], "label": 0}])
    for columns, message in (
        (
            {},
            r"no column 'caption' \(name its column for caption with --columns.caption\); it has: text, images, label",
        ),
        ({"question": "tekst"}, r"no column 'tekst' \(columns.question\); it has: text, images, label"),
        ({"question": "text"}, r"no column 'answer_index' .*--columns.answer"),
        ({"question": "text", "answer": "label", "images": "images,image_2"}, "no column 'image_2'"),
        ({"target": "label"}, "columns.target is no field; map id, caption, question, images, answer, options"),
    ):
        with pytest.raises(UserError, match=message):
            table(source, str(tmp_path / "out"), columns)
    assert not (tmp_path / "out").exists()


def test_images_are_stored_only_if_they_are_images(tmp_path: Path) -> None:
    truncated = encoded(0, "JPEG")[:-200]
    with pytest.raises(OSError):
        Image.open(io.BytesIO(truncated)).load()
    pq.write_table(
        pa.Table.from_pylist([{"question": "?", "images": [encoded(1), truncated], "answer_index": 0}]),
        tmp_path / "set.parquet",
    )
    with pytest.raises(UserError, match="1: an embedded image cannot be read"):
        table(str(tmp_path / "set.parquet"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    "question",
    [
        "Compare the first and second images.",
        "What differs between images 1 and 2?",
        "Look at the first two images.",
        "Which of the 1st and 2nd photos is older?",
        "Is Image A brighter?",
        "Is image one brighter?",
        "Image-2 is a reference.",
        "Unlike the previous image, ...",
        "Is the left image a forgery?",
    ],
)
def test_questions_that_depend_on_the_order(question: str) -> None:
    with pytest.raises(SkipItem, match="by its position"):
        check_order_free(question)


@pytest.mark.parametrize(
    "question", ["Which image shows a dog?", "Which of these images is a forgery?", "A picture is"]
)
def test_questions_that_do_not(question: str) -> None:
    check_order_free(question)


def test_tasks_that_would_share_a_file(tmp_path: Path) -> None:
    conversion = AnnotationWriter("somewhere")
    for task in ("a b", "A_b"):
        conversion.add(task, task, ["x.png", "y.png"], 0, "which?")
    with pytest.raises(UserError, match="would have the same file; rename one"):
        conversion.finish(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_what_stands_beside_the_request_to_choose_is_kept() -> None:
    context = "A red bird. Select from the following choices.\nA: the first image"
    assert _context(context, "A: the first image") == "A red bird."


def test_an_embedded_image_that_another_program_would_have_to_decode(tmp_path: Path) -> None:
    """PostScript would be handed to Ghostscript; nothing but photographs is opened."""
    drawing = io.BytesIO()
    Image.new("RGB", (8, 8)).save(drawing, "EPS")
    with pytest.raises(SkipItem, match="an embedded image cannot be read"):
        ImageFolder(tmp_path).store(drawing.getvalue())
    assert not list(tmp_path.iterdir())
