import json
import pickle
import shutil
from pathlib import Path
from random import Random

import pytest
from paths import SHARED
from safetensors.torch import load_file, save_file
from tiny_clip import build_tiny_clip
from tiny_vlm import write_noise_images

from lad_pl.cli import main
from lad_pl.data import read_annotations
from lad_pl.data.prepare.caption_sets import captions, coco, flickr8k, paired_draws, published_draws
from lad_pl.data.prepare.clip_embeddings import ClipSpec, image_key
from lad_pl.errors import UserError

GOLDEN = SHARED / "golden" / "coco_builder"
NUM_IMAGES = 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return f"local-dir:{build_tiny_clip(tmp_path_factory.mktemp('clip'))}"


@pytest.fixture
def data(tmp_path) -> dict[str, str]:
    """Captions, categories and pictures; what the command needs to know of them."""
    names = [path.name for path in write_noise_images(tmp_path / "photos", NUM_IMAGES)]
    colours = ("red", "green", "blue", "black", "white")
    texts = {name: [f"A {colours[i % 5]} picture, {'very ' * (i // 5)}noisy", "Noise"] for i, name in enumerate(names)}
    (tmp_path / "captions.json").write_text(json.dumps(texts))
    (tmp_path / "categories.json").write_text(json.dumps({name: [i % 3] for i, name in enumerate(names)}))
    return {
        "captions": str(tmp_path / "captions.json"),
        "instances": str(tmp_path / "categories.json"),
        "images": str(tmp_path / "photos"),
        "output": str(tmp_path / "out"),
    }


SMALL = {"num_candidates": [4, 6], "num_samples": 12, "max_text_similarity": 1.1, "batch_size": 16, "num_workers": 0}


def annotations(data: dict[str, str], n: int, difficulty: str) -> list[dict]:
    return json.loads((Path(data["output"]) / f"annotations_{n}_1_{difficulty}.json").read_text())


# ------------------------------------------------------------------------------------------------- published


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden/coco_builder")
def test_the_published_sets_to_the_last_file_name(tmp_path, monkeypatch):
    """From pickles as the published repository's, through the command, with the published embeddings in the store."""
    monkeypatch.chdir(tmp_path)
    texts = json.loads((GOLDEN / "captions.json").read_text())
    sets = json.loads((GOLDEN / "categories.json").read_text())
    Path("captions.pkl").write_bytes(pickle.dumps(texts))
    Path("categories.pkl").write_bytes(pickle.dumps({"file_to_catIds": {k: set(v) for k, v in sets.items()}}))
    images = Path("data/val2014")
    images.mkdir(parents=True)
    names = json.loads((GOLDEN / "file_names.json").read_text())
    for name in names:
        (images / name).touch()
    store = Path("store")
    store.mkdir()
    (store / "manifest.json").write_text(json.dumps(ClipSpec().manifest()))
    keys = [image_key(name, images / name, texts[name]) for name in names]
    golden = load_file(GOLDEN / "embeddings.safetensors")
    save_file(golden, store / "shard-00000.safetensors", metadata={"keys": json.dumps(keys)})
    coco(
        captions="captions.pkl",
        instances="categories.pkl",
        images="data/val2014",
        output="out",
        num_candidates=[4],
        num_samples=25,
        pool_size=500,
        compat="published",
        image_prefix="data/val2014/",
        embeddings="store",
    )
    for difficulty in ("random", "adversarial"):
        name = f"annotations_4_1_{difficulty}.json"
        assert json.loads((Path("out") / name).read_text()) == json.loads((GOLDEN / name).read_text())


def test_the_published_draws_are_those_of_the_global_generator():
    """The published code's calls of Python's generator, on names instead of indices."""
    import random

    names = [f"{number:03d}" for number in range(60)]
    state = random.getstate()
    random.seed(7)
    pool = random.sample(names, 50)
    expected = []
    for difficulty in ("random", "adversarial"):
        for _ in range(20):
            anchor = random.sample(pool, 5)[0]
            others = [name for name in pool if name != anchor]
            shown = [anchor, *(random.sample(others, 4) if difficulty == "random" else "wxyz")]
            random.shuffle(shown)
            expected.append(shown)
    random.setstate(state)
    found = []
    for draws in published_draws(60, 50, 5, 20, seed=7).values():
        for draw in draws:
            places = [pool[draw.anchor], *([pool[place] for place in draw.negatives] or "wxyz")]
            found.append([places[place] for place in draw.order])
    assert found == expected


# --------------------------------------------------------------------------------------------------- our own


def test_sets_of_the_right_kind(data, clip, capsys):
    coco(**data, model=clip, **SMALL)
    texts, sets = (json.loads(Path(data[name]).read_text()) for name in ("captions", "instances"))
    for n in (4, 6):
        for difficulty in ("random", "adversarial"):
            samples = read_annotations(Path(data["output"]) / f"annotations_{n}_1_{difficulty}.json")
            assert len(samples) == 12 and {sample.num_candidates for sample in samples} == {n}
            for sample, entry in zip(samples, annotations(data, n, difficulty), strict=True):
                assert sample.images[sample.target] == entry["target"]
                assert sample.caption == texts[entry["target"]][0]
                if difficulty == "adversarial":
                    others = set(sample.images) - {entry["target"]}
                    assert all(sets[name] != sets[entry["target"]] for name in others)
    printed = capsys.readouterr().out
    assert "40 images with 80 captions; the first of each image is used." in printed
    assert "Embeddings: 40 computed, 0 taken from before" in printed
    assert f"--data.annotations {data['output']}/annotations_4_1_random.json --data.images {data['images']}" in printed


def test_the_same_distinct_anchors_everywhere(data, clip):
    coco(**data, model=clip, **SMALL)
    files = [annotations(data, n, difficulty) for n in (4, 6) for difficulty in ("random", "adversarial")]
    anchors = [[(entry["target"], entry["caption"]) for entry in entries] for entries in files]
    assert anchors.count(anchors[0]) == 4 and len(set(anchors[0])) == 12
    for four, six in zip(annotations(data, 4, "adversarial"), annotations(data, 6, "adversarial"), strict=True):
        assert set(four["image_ids"]) < set(six["image_ids"])  # the nearest three are among the nearest five
    places = {entry["index"] for entries in files for entry in entries}
    assert places == set(range(6))


def test_a_file_does_not_depend_on_the_others(data, clip):
    coco(**data, model=clip, **SMALL)
    both = annotations(data, 6, "adversarial"), annotations(data, 6, "random")
    coco(**{**data, "output": data["output"] + "2"}, model=clip, **{**SMALL, "num_candidates": [6]})
    alone = {**data, "output": data["output"] + "2"}
    assert (annotations(alone, 6, "adversarial"), annotations(alone, 6, "random")) == both
    coco(**alone, model=clip, **SMALL, seed=1, embeddings=data["output"] + "/embeddings")
    assert annotations(alone, 6, "random") != both[1]


def test_random_sets_need_no_model(data):
    coco(**data, difficulties=["random"], model="nothing", **SMALL)
    assert sorted(path.name for path in Path(data["output"]).iterdir()) == [
        "annotations_4_1_random.json",
        "annotations_6_1_random.json",
    ]


def test_random_draws_are_uniform_over_positions_and_images():
    draws = paired_draws(30, 4, 30, seed=0, difficulty="random")
    assert sorted(draw.anchor for draw in draws) == list(range(30))
    assert all(len({draw.anchor, *draw.negatives}) == 4 for draw in draws)
    assert len({place for draw in draws for place in draw.negatives}) > 25


def test_flickr_and_any_table(data, clip, tmp_path, capsys):
    texts = json.loads(Path(data["captions"]).read_text())
    lines = [f"{name}#{i}\t{text}" for name, both in texts.items() for i, text in enumerate(both)]
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join([*lines, "2258277193_586949ec62.jpg.1#0\tNot there"]))
    place = {"images": data["images"], "output": str(tmp_path / "flickr")}
    with pytest.raises(UserError, match=r"1 images with a caption but no file in .*2258277193.*--missing_images drop"):
        flickr8k(str(tmp_path / "Flickr8k.token.txt"), **place, model=clip, **SMALL)
    flickr8k(str(tmp_path / "Flickr8k.token.txt"), **place, model=clip, **SMALL, missing_images="drop")
    printed = capsys.readouterr().out
    assert "Left out: 1 images with a caption but no file" in printed and "No categories" in printed

    rows = [{"file": name, "text": text} for name, text in texts.items()]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    place["output"] = str(tmp_path / "table")
    captions(str(tmp_path / "rows.jsonl"), **place, image_column="file", caption_column="text", model=clip, **SMALL)
    for n in (4, 6):
        for difficulty in ("random", "adversarial"):
            name = f"annotations_{n}_1_{difficulty}.json"
            assert (tmp_path / "table" / name).read_text() == (tmp_path / "flickr" / name).read_text()


# ---------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("compat", [None, "published"])
def test_no_prepared_sample_shows_a_picture_twice(data, clip, capsys, compat) -> None:
    coco(**data, model=clip, **SMALL, compat=compat)
    assert "Copies" not in capsys.readouterr().out
    files = [(n, difficulty) for n in (4, 6) for difficulty in ("random", "adversarial")]
    before = {file: annotations(data, *file) for file in files}
    photos, names = Path(data["images"]), sorted(json.loads(Path(data["captions"]).read_text()))
    picture = {name: name for name in names}
    generator = Random(0)
    for copy, name in zip(generator.sample(names[20:], 12), generator.choices(names[:20], k=12), strict=True):
        shutil.copy(photos / name, photos / copy)
        picture[copy] = name
    coco(**data, model=clip, **SMALL, compat=compat, rebuild=True)
    shown_twice = 0
    for n, difficulty in files:
        for old, new in zip(before[n, difficulty], annotations(data, n, difficulty), strict=True):
            assert len({picture[name] for name in new["image_ids"]}) == n
            assert (old["target"], old["index"]) == (new["target"], new["index"])
            twice = len({picture[name] for name in old["image_ids"]}) < n
            shown_twice += twice
            if difficulty == "random" and not twice:
                assert new == old
    assert shown_twice
    assert "Copies: 12 images of the pool show the picture of another, the first is" in capsys.readouterr().out


def test_too_few_different_pictures(data) -> None:
    names = sorted(path for path in Path(data["images"]).iterdir())
    for name in names[5:]:
        shutil.copy(names[0], name)
    with pytest.raises(UserError, match="has 5 different pictures, too few for samples of N = 6"):
        coco(**data, difficulties=["random"], **SMALL)


def test_what_is_nearly_identical_is_said(data, clip, capsys) -> None:
    coco(**data, model=clip, **{**SMALL, "num_candidates": [4]}, near_identical=-1.0)
    printed = capsys.readouterr().out
    assert printed.count("12 of them show the correct image and another that are nearly identical, the first is 0") == 2
    assert printed.count("12 of them show two other images that are nearly identical, the first is 0") == 2


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": [1]}, r"num_candidates is \[1\]"),
        ({"num_candidates": [4, 4]}, "different numbers"),
        ({"num_candidates": []}, "num_candidates"),
        ({"difficulties": []}, "difficulties is empty"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"pool_size": 0}, "pool_size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"num_samples": 41}, "40 images, too few for 41 samples with different anchors"),
        ({"pool_size": 3, "num_samples": 2}, "3 images, too few for samples of N = 6"),
        ({"images": "nowhere"}, "image folder nowhere does not exist"),
        ({"max_text_similarity": -1.0}, r"12 of 12 anchors have too few .* has 0 of 3, as 13 of the other 39 images"),
        ({"captions": "nowhere.json"}, "Cannot read nowhere.json: no such file; .* with --captions"),
        ({"instances": "nowhere.json"}, "Cannot read nowhere.json: no such .* with --instances, or --instances null"),
    ],
)
def test_what_cannot_be_done(data, clip, options, message):
    with pytest.raises(UserError, match=message) as error:
        coco(**{**data, "model": clip, **SMALL, **options})
    assert "\n" not in str(error.value)
    assert not list(Path(data["output"]).glob("annotations*"))


def test_missing_broken_and_uncaptioned_images(data, clip, capsys):
    photos = Path(data["images"])
    texts = json.loads(Path(data["captions"]).read_text())
    texts |= {"noise_001.png": [" "]}
    Path(data["captions"]).write_text(json.dumps(texts))
    (photos / "noise_002.png").unlink()
    (photos / "noise_003.png").write_bytes((photos / "noise_003.png").read_bytes()[:40])
    (photos / "extra.png").touch()
    sets = json.loads(Path(data["instances"]).read_text())
    Path(data["instances"]).write_text(json.dumps({**sets, "noise_004.png": []}))

    with pytest.raises(UserError, match=r"1 images without a caption, the first is noise_001.png"):
        coco(**data, model=clip, **SMALL)
    Path(data["captions"]).write_text(json.dumps({**texts, "noise_001.png": "Noise"}))
    with pytest.raises(UserError, match=r"1 images with a caption but no file in .*, the first is noise_002.png"):
        coco(**data, model=clip, **SMALL)
    write_noise_images(photos, 3)
    with pytest.raises(UserError, match=r"1 images of the pool are broken, the first is noise_003.png \(image file"):
        coco(**data, model=clip, **SMALL)
    assert not list(Path(data["output"]).glob("annotations*"))

    Path(data["captions"]).write_text(json.dumps(texts))
    (photos / "noise_002.png").unlink()
    capsys.readouterr()
    for compat in (None, "published"):
        coco(**data, model=clip, **SMALL, missing_images="drop", compat=compat)
        shown = {name for n in (4, 6) for entry in annotations(data, n, "random") for name in entry["image_ids"]}
        assert not shown & {f"noise_00{number}.png" for number in (1, 2, 3, 4)} and "extra.png" not in shown
    printed = capsys.readouterr().out
    for line in (
        "Left out: 1 images without a caption, the first is noise_001.png.",
        f"Left out: 1 images with a caption but no file in {photos}, the first is noise_002.png.",
        "Left out: 1 images without a category, the first is noise_004.png.",
        "Left out: 1 broken images, the first is noise_003.png",
        "Pool: 36 images",
    ):
        assert printed.count(line) == 2
    assert f"Not used: 2 files in {photos} that the captions do not name." in printed


def test_files_that_do_not_belong_together(data, clip):
    Path(data["instances"]).write_text(json.dumps({"elsewhere.jpg": [1]}))
    with pytest.raises(UserError, match="do captions, categories and images belong together"):
        coco(**data, model=clip, **SMALL)


def test_on_the_command_line(data, clip, capsys):
    arguments = [f"--{name}={value}" for name, value in {**data, "model": clip, **SMALL}.items()]
    assert main(["prepare", "coco", *arguments, "--exclude=identical"]) == 0
    assert len(annotations(data, 6, "adversarial")) == 12
    assert main(["prepare", "coco", *arguments, "--num_samples=41"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("lad_pl: The pool has 40 images, too few")


@pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="needs ../shared/photos")
def test_real_photographs(tmp_path, clip):
    photos = SHARED / "photos"
    captions(
        str(photos / "coco_captions.json"),
        str(tmp_path),
        str(photos / "coco"),
        image_column="file_name",
        caption_column="captions",
        categories=str(photos / "coco_categories.json"),
        model=clip,
        num_workers=0,
        num_candidates=[26],
        num_samples=20,
    )
    (sample, *_) = read_annotations(tmp_path / "annotations_26_1_adversarial.json")
    assert sample.num_candidates == 26
