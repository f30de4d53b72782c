import json
import os
import pickle
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_vlm import write_noise_images

from lad_pl.data.prepare.caption_sets import usable_images
from lad_pl.data.prepare.captions import read_categories, read_coco, read_dataset, read_flickr
from lad_pl.data.prepare.pickles import read_pickle
from lad_pl.errors import UserError


def coco_files(folder: Path, captions: dict | None = None, instances: dict | None = None) -> tuple[Path, Path]:
    images = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}, {"id": 9, "file_name": "c.jpg"}]
    texts = [(3, "A dog. "), (7, "A cat."), (3, "A hound."), (9, " \n")]
    objects = [(3, 18), (3, 1), (7, 17), (3, 18)]
    content = {
        "captions": {"images": images, "annotations": [{"image_id": i, "caption": text} for i, text in texts]},
        "instances": {"images": images, "annotations": [{"image_id": i, "category_id": c} for i, c in objects]},
    }
    content["captions"] |= captions or {}
    content["instances"] |= instances or {}
    for name, values in content.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder / "captions.json", folder / "instances.json"


# ------------------------------------------------------------------------------------------------------- COCO


def test_official_coco_files(tmp_path):
    source = read_coco(*coco_files(tmp_path))
    assert source.captions == {"b.jpg": ["A cat."], "a.jpg": ["A dog. ", "A hound."]}
    assert source.categories == {"a.jpg": frozenset({1, 18}), "b.jpg": frozenset({17})}
    assert source.without_captions == ("c.jpg",)
    assert source.num_captions == 3


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"images": [{"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": "a.jpg"}]}, "file_name occur.*'a.jpg'"),
        ({"images": [{"id": 3, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}]}, "id occur.*is 3"),
        ({"images": [{"id": 3, "file_name": "a.jpg"}]}, "2 annotations belong to images.*image_id 7"),
        ({"images": [{"id": 3}]}, r"images\[0\] lacks 'file_name'"),
        ({"images": [{"id": [3], "file_name": "a.jpg"}]}, r"images\[0\]: id must be a number or a text"),
        ({"annotations": [{"image_id": 3, "caption": None}]}, "the caption of image a.jpg must be a text"),
        ({"annotations": ["A dog"]}, r"annotations\[0\] is not an object"),
    ],
)
def test_malformed_coco_files(tmp_path, captions, message):
    with pytest.raises(UserError, match=message):
        read_coco(*coco_files(tmp_path, captions))


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*nothing.json: No such file"):
        read_coco(tmp_path / "nothing.json")
    captions, _ = coco_files(tmp_path)
    captions.write_text(captions.read_text()[:-30])
    with pytest.raises(UserError, match=r"not valid JSON: .*cut off while downloading"):
        read_coco(captions)
    captions.write_text("[1]")
    with pytest.raises(UserError, match="must hold either COCO's images and annotations or"):
        read_coco(captions)


def test_plain_mappings_as_json_and_as_the_published_pickles(tmp_path):
    captions = {"a.jpg": "A dog", "b.jpg": ["A cat", "A tom"]}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    sets = defaultdict(set, {"a.jpg": {1, 18}, "b.jpg": {17}})
    for protocol in range(6):
        (tmp_path / "categories.pkl").write_bytes(
            pickle.dumps({"file_to_catIds": sets, "catId_to_name": {1: "person"}}, protocol=protocol)
        )
        for suffix in ("json", "pkl"):
            source = read_coco(tmp_path / f"captions.{suffix}", tmp_path / "categories.pkl")
            assert source.captions == {"a.jpg": ["A dog"], "b.jpg": ["A cat", "A tom"]}
            assert source.categories == {"a.jpg": frozenset({1, 18}), "b.jpg": frozenset({17})}
    (tmp_path / "categories.json").write_text(json.dumps({"a.jpg": ["dog"], "b.jpg": "dog"}))
    with pytest.raises(UserError, match=r"the categories of b.jpg must be a list"):
        read_categories(tmp_path / "categories.json")


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def shared(levels: int) -> list:
    """Lists of lists, ten times the same in each, so that 10 ** levels texts can be read out of it."""
    value: list = ["a"]
    for _ in range(levels):
        value = [value] * 10
    return value


def holding_itself() -> dict:
    value: list = []
    value.append(value)
    return {"a.jpg": value}


KEY = b"\x80\x04}%sK\x01s."  # a dict with one key
HOSTILE = {
    "shared lists": pickle.dumps({"a.jpg": shared(40)}),
    "shared lists in COCO's form": pickle.dumps({"images": [{"id": 1, "file_name": shared(40)}], "annotations": []}),
    "shared lists, once": pickle.dumps(dict.fromkeys(map(str, range(20_000)), ["x"] * 20_000)),
    "shared tuples as a key": KEY % (b"K\x01\x85" + b"2\x86" * 100),
    "shared tuples in a set": b"\x80\x02}\x8c\x01ac__builtin__\nset\n]K\x01\x85" + b"2\x86" * 100 + b"a\x85Rs.",
    "deep lists": b"\x80\x04}\x8c\x01a" + b"]" * 30_000 + b"a" * 29_999 + b"s.",
    "deep tuples as a key": KEY % (b")" + b"\x85" * 500_000),
    "itself": pickle.dumps(holding_itself()),
    "a number of 5000 digits": pickle.dumps({"a.jpg": 10**5000}),
    "cut off": pickle.dumps({"a.jpg": "A dog"}, 2)[:-3],
    "empty lists": b"\x80\x04}\x8c\x01a](" + b"]" * 3_000_000 + b"es.",
    "empty tuples": b"\x80\x04}\x8c\x01a](" + b"N\x85" * 400_000 + b"es.",
    "nothing, often": b"\x80\x04" + b"N0" * 1_500_000 + b"}.",
    "a long list, copied often": b"\x80\x04}\x8c\x01ac__builtin__\nlist\n]("
    + b"N" * 99_999
    + b"eq\x00"
    + b"\x85R" * 90_000
    + b"s.",
    "numbers that collide": pickle.dumps({k * (2**61 - 1): "A dog" for k in range(1, 30)}),
    "what a class has": b"\x80\x02}\x8c\x01accollections\nOrderedDict\n)R}\x8c\x05itemsNsbs.",
    "a place far away": b"\x80\x04}r\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_end_in_one_line(tmp_path, kind):
    """None is read out, printed or hashed: each would take hours, or the process with it."""
    path = tmp_path / "hostile.pkl"
    path.write_bytes(HOSTILE[kind])
    for reader in (read_coco, read_categories):
        with pytest.raises(UserError) as error:
            reader(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}(X\x05\x00\x00\x00a.jpgU\x01xX\x05\x00\x00\x00a.jpgU\x01yu.",
        b"\x80\x02}X\x05\x00\x00\x00a.jpgU\x01xsX\x05\x00\x00\x00a.jpgU\x01ys.",
        b"(Va.jpg\nVx\nVa.jpg\nVy\nd.",
        b"ccollections\nOrderedDict\n(((Va.jpg\nVx\nl(Va.jpg\nVy\nlltR.",
    ],
    ids=["SETITEMS", "SETITEM", "DICT", "OrderedDict"],
)
def test_a_key_that_stands_twice_in_a_pickle(tmp_path, content):
    assert pickle.loads(content) == {"a.jpg": "y"}
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"x.pkl is not a pickle of plain .* \(a dict has the key 'a.jpg' twice\)"):
        read_coco(tmp_path / "x.pkl")


def test_a_pickle_of_the_size_of_coco(tmp_path):
    """123,000 images, as all of COCO 2014 has."""
    captions = {f"COCO_train2014_{number:012}.jpg": ["A dog on a beach"] for number in range(123_000)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(captions))
    assert read_pickle(tmp_path / "x.pkl") == captions


def test_parts_that_pickles_share_as_a_rule(tmp_path):
    colours, few = {1, 2}, ["One", "Two"]
    content = {f"{number}.jpg": colours for number in range(1000)}
    (tmp_path / "shared.pkl").write_bytes(pickle.dumps(content))
    assert read_categories(tmp_path / "shared.pkl") == {name: frozenset({1, 2}) for name in content}
    (tmp_path / "shared.pkl").write_bytes(pickle.dumps({"a.jpg": few, "b.jpg": few, "c.jpg": ("Three",)}))
    assert read_coco(tmp_path / "shared.pkl").captions == {"a.jpg": few, "b.jpg": few, "c.jpg": ["Three"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.jpg": "half \ud83d"}, "the caption of a.jpg is 'half .ud83d', with half of a character"),
        ({"\ud83d.jpg": "A dog"}, "an image name is '.ud83d.jpg', with half of a character"),
        ({"images": [{"id": 1, "file_name": ["a.jpg"]}], "annotations": []}, "file_name of image 1 must be a text"),
        ({"images": [{"filename": ["a.jpg"], "sentences": []}]}, "the filename must be a text"),
        ({"images": [{"filename": "a.jpg", "sentences": 3}]}, "sentences must be a list, not 3"),
        ('{"a.jpg": "A dog", "a.jpg": "A cat"}', "an object has the key 'a.jpg' twice"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_captions_that_mean_nothing(tmp_path, content, message):
    path = tmp_path / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    reader = read_flickr if "filename" in path.read_text() else read_coco
    with pytest.raises(UserError, match=message) as error:
        reader(path)
    assert "\n" not in str(error.value)
    str(error.value).encode()


def test_lines_and_their_ends(tmp_path):
    """Line breaks in a quoted cell keep its words apart; only a line feed ends a line of a token file."""
    path = tmp_path / "captions.txt"
    path.write_bytes(b'\xef\xbb\xbfimage,caption\r\na.jpg,"first line\r\nsecond line"\r\n')
    assert read_flickr(path).captions == {"a.jpg": ["first line second line"]}
    path.write_text("\ufeffa.jpg#0\tOne\u2028two\x85\nb.jpg#0\tThree\n", encoding="utf-8")
    assert read_flickr(path).captions == {"a.jpg": ["One two"], "b.jpg": ["Three"]}
    path.write_text("a.jpg#0\tOne\n", encoding="utf-16")
    with pytest.raises(UserError, match="is UTF-16 text; save it as UTF-8"):
        read_flickr(path)


def test_a_pickle_runs_nothing(tmp_path):
    (tmp_path / "harm.pkl").write_bytes(pickle.dumps({"a.jpg": Harmful(tmp_path / "harmed")}))
    with pytest.raises(UserError, match="nothing else is loaded from a pickle"):
        read_pickle(tmp_path / "harm.pkl")
    assert not (tmp_path / "harmed").exists()
    (tmp_path / "harm.pkl").write_bytes(pickle.dumps({"a": "b"})[:-3])
    with pytest.raises(UserError, match="not a pickle of plain captions"):
        read_pickle(tmp_path / "harm.pkl")


# ----------------------------------------------------------------------------------------------------- Flickr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Flickr8k.token.txt", "a.jpg#0\tA dog .\na.jpg#1\tA hound, brown\nb.jpg#0\tA cat .\n"),
        ("captions.txt", 'image,caption\na.jpg,A dog .\na.jpg,"A hound, brown"\nb.jpg,A cat .\n'),
        (
            "results.csv",
            "image_name| comment_number| comment\na.jpg| 0| A dog .\na.jpg| 1| A hound, brown\nb.jpg| 0| A cat .\n",
        ),
        (
            "dataset_flickr30k.json",
            json.dumps(
                {
                    "images": [
                        {"filename": "a.jpg", "sentences": [{"raw": "A dog ."}, {"raw": "A hound, brown"}]},
                        {"filename": "b.jpg", "sentences": [{"raw": "A cat ."}]},
                    ]
                }
            ),
        ),
    ],
)
def test_flickr_in_its_four_forms(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    source = read_flickr(tmp_path / name)
    assert source.captions == {"a.jpg": ["A dog .", "A hound, brown"], "b.jpg": ["A cat ."]}
    assert source.categories is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "a.jpg#0\tA dog\na.jpg A hound\n", "line 2 is not 'name.jpg#0<tab>caption': 'a.jpg A hound'"),
        ("x.csv", "image_name| comment_number| comment\na.jpg| 4   A dog\n", "line 2 has 2 columns instead of 3"),
        ("x.json", "{}", "no list 'images'"),
        ("x.json", '{"images": [{"filename": "a.jpg"}]}', r"images\[0\] lacks 'sentences'"),
    ],
)
def test_malformed_flickr_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_flickr(tmp_path / name)


# ------------------------------------------------------------------------------------------------ data sets


def read(dataset: Path, folder: Path, images: Path | None = None, image="image", caption="caption"):
    return read_dataset(str(dataset), image, caption, None, None, images, folder / "written")


def test_a_table_of_names(tmp_path):
    rows = [
        {"file": "a.jpg", "texts": ["A dog", "A hound"]},
        {"file": "b.jpg", "texts": ["A cat"]},
        {"file": "c.jpg", "texts": None},
        {"file": "a.jpg", "texts": ["A puppy"]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = read(tmp_path / "rows.jsonl", tmp_path, tmp_path, "file", "texts")
    assert source.captions == {"a.jpg": ["A dog", "A hound", "A puppy"], "b.jpg": ["A cat"]}
    assert source.without_captions == ("c.jpg",)
    assert not (tmp_path / "written").exists()


def parquet(path: Path, pictures: list, captions: list) -> Path:
    pq.write_table(pa.table({"image": pictures, "caption": captions}), path)
    return path


def test_embedded_pictures_are_written_once_and_unchanged(tmp_path):
    first, second = (path.read_bytes() for path in write_noise_images(tmp_path / "noise", 2))
    pictures = [{"bytes": first, "path": "x/dog.png"}, {"bytes": second, "path": None}, {"bytes": second, "path": None}]
    dataset = parquet(tmp_path / "rows.parquet", pictures, ["A dog", "A cat", "A tom"])
    source = read(dataset, tmp_path)
    named, unnamed = source.captions
    assert list(source.captions.values()) == [["A dog"], ["A cat", "A tom"]]
    assert named == "dog.png" and unnamed.endswith(".png")
    assert (tmp_path / "written" / named).read_bytes() == first
    assert (tmp_path / "written" / unnamed).read_bytes() == second
    (tmp_path / "written" / named).touch()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "written").iterdir()}
    assert read(dataset, tmp_path) == source
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "written").iterdir()}


def test_a_folder_that_datasets_understands(tmp_path):
    write_noise_images(tmp_path / "photos", 2)
    rows = [{"file_name": f"noise_00{i}.png", "caption": f"noise {i}"} for i in range(2)]
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = read(tmp_path / "photos", tmp_path)
    assert source.captions == {"noise_000.png": ["noise 0"], "noise_001.png": ["noise 1"]}
    assert len(list((tmp_path / "written").iterdir())) == 2


def test_data_sets_that_cannot_be_used(tmp_path):
    first, second = (path.read_bytes() for path in write_noise_images(tmp_path / "noise", 2))
    twice = parquet(tmp_path / "x.parquet", [{"bytes": b, "path": "a.png"} for b in (first, second)], ["x", "y"])
    with pytest.raises(UserError, match=r"row 2.*two different pictures have the name a.png"):
        read(twice, tmp_path)
    with pytest.raises(UserError, match=r"row 1: the image, a file name in .* must be a text"):
        read(twice, tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"no column 'text'.*it has: image, caption"):
        read(twice, tmp_path, caption="text")
    names = parquet(tmp_path / "names.parquet", ["a.png"], ["x"])
    with pytest.raises(UserError, match=r"row 1: column 'image' holds no picture but 'a.png'; name the folder"):
        read(names, tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "caption": "x"}\n{"image": "b.p')
    with pytest.raises(UserError, match="line 2 is not valid JSON"):
        read(tmp_path / "rows.jsonl", tmp_path, tmp_path)
    with pytest.raises(UserError, match="must be a text, not '3'"):
        read(parquet(tmp_path / "numbers.parquet", ["a.png"], [3]), tmp_path, tmp_path)


def test_pictures_that_a_table_names_are_taken_from_its_own_folder(tmp_path, capsys):
    """A stranger's table may name any file: none outside is copied, none that is no picture, and a pipe is not read."""
    own = tmp_path / "own"
    write_noise_images(own, 2)
    (outside,) = write_noise_images(tmp_path / "private", 1, sizes=((30, 20),))
    (own / "notes.txt").write_text("my notes")
    (own / "cut.png").write_bytes((own / "noise_000.png").read_bytes()[:-200])
    os.mkfifo(own / "pipe.png")
    names = ["noise_000.png", str(own / "noise_001.png"), str(outside), "../private/noise_000.png", "/etc/passwd"]
    names += ["notes.txt", "cut.png", "pipe.png", "gone.png", "x" * 5000, "nul\0.png"]
    pictures = [{"bytes": None, "path": name} for name in names]
    source = read(parquet(own / "x.parquet", pictures, [*map(str, range(len(names)))]), tmp_path)
    assert source.captions == {"noise_000.png": ["0"], "noise_001.png": ["1"]}
    assert sorted(path.name for path in (tmp_path / "written").iterdir()) == ["noise_000.png", "noise_001.png"]
    assert source.unusable == {
        f"an image outside the image folder {own}": ["row 3", "row 4", "row 5"],
        "an image file cannot be read": ["row 6", "row 7"],
        f"an image that is no regular file in {own}": ["row 8"],
        f"an image file is missing in {own}": ["row 9", "row 10", "row 11"],
    }
    with pytest.raises(UserError, match=r"^3 images .*outside the image folder .*first is row 3; .*--missing_images"):
        usable_images(source, tmp_path / "written", "error")
    assert usable_images(source, tmp_path / "written", "drop") == ["noise_000.png", "noise_001.png"]
    assert "Left out: 2 images that are no pictures to be used (an image file cannot" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no picture but"):
        read(parquet(own / "y.parquet", [{"bytes": "text", "path": None}], ["x"]), tmp_path)


def test_a_data_set_that_names_pictures_outside_its_folder(tmp_path):
    (outside,) = write_noise_images(tmp_path / "private", 1)
    (tmp_path / "set").mkdir()
    for path in (outside, Path("/etc/passwd")):
        parquet(tmp_path / "set" / "train.parquet", [{"bytes": None, "path": str(path)}], ["x"])
        source = read(tmp_path / "set", tmp_path)
        assert not source.captions and list(source.unusable.values()) == [["row 1"]]
        with pytest.raises(UserError, match="outside the image folder"):
            usable_images(source, tmp_path / "written", "error")
    assert not (tmp_path / "written").exists()


def test_an_embedded_picture_that_is_none_is_left_to_the_one_who_opens_it(tmp_path):
    dataset = parquet(tmp_path / "x.parquet", [{"bytes": b"no picture", "path": None}], ["x"])
    (name,) = read(dataset, tmp_path).captions
    assert (tmp_path / "written" / name).read_bytes() == b"no picture"


BREAKS = ["\n", "\r\n", "\r", "\t", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", " \n\n\t "]
"""Whatever separates lines, and tabs."""


@pytest.mark.parametrize("line_break", BREAKS)
def test_words_on_two_lines_stay_apart(tmp_path, line_break):
    """In every form of the captions; a CSV cell may have several lines."""
    caption = f"first{line_break}second  line {line_break}"
    quoted = caption.replace("\r\n", "\n").replace("\r", "\n")
    (tmp_path / "a.csv").write_text(f'image,caption\nx.jpg,"{quoted}"\ny.jpg,plain\n', encoding="utf-8", newline="")
    (tmp_path / "b.csv").write_text(
        f'image,caption\r\nx.jpg,"{caption}"\r\ny.jpg,plain\r\n', encoding="utf-8", newline=""
    )
    images = [
        {"filename": name, "sentences": [{"raw": text}]} for name, text in (("x.jpg", caption), ("y.jpg", "plain"))
    ]
    (tmp_path / "c.json").write_text(json.dumps({"images": images}))
    forms = [read_flickr(tmp_path / name) for name in ("a.csv", "b.csv", "c.json")]
    (tmp_path / "plain.json").write_text(json.dumps({"x.jpg": caption, "y.jpg": "plain"}))
    forms.append(read_coco(tmp_path / "plain.json"))
    forms.append(read(parquet(tmp_path / "p.parquet", ["x.jpg", "y.jpg"], [caption, "plain"]), tmp_path, tmp_path))
    if line_break not in ("\n", "\r\n", "\r", "\t", " \n\n\t "):  # these end a line or a column there
        (tmp_path / "d.token").write_text(f"x.jpg#0\t{caption}\ny.jpg#0\tplain\n", encoding="utf-8")
        pipes = f"image_name| comment_number| comment\nx.jpg| 0| {caption}\ny.jpg| 0| plain\n"
        (tmp_path / "e.csv").write_text(pipes, encoding="utf-8")
        forms += [read_flickr(tmp_path / "d.token"), read_flickr(tmp_path / "e.csv")]
    assert all(form.captions == {"x.jpg": ["first second  line"], "y.jpg": ["plain"]} for form in forms)


def test_a_caption_of_one_line_is_unchanged(tmp_path):
    captions = {"a.jpg": [" two  blanks ", "no\u00a0break", "e\u0301 \U0001f600"]}
    (tmp_path / "plain.json").write_text(json.dumps(captions))
    assert read_coco(tmp_path / "plain.json").captions == captions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('image,caption\na.jpg,"a dog\nb.jpg,a cat\nc.jpg,"x"\n', "a quotation mark before line . is not closed"),
        ('image,caption\na.jpg,"' + "x" * 200_000 + '"\n', "line 2: a cell has more than 131,072 char.*as JSONL"),
        ("a.jpg#0\ta dog\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.jpg#0\té\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_text_files_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "captions.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_flickr(tmp_path / "captions.txt")


def test_a_byte_order_mark_is_skipped(tmp_path):
    for name, content in {
        "a.csv": "image,caption\nx.jpg,a dog\n",
        "b.token": "x.jpg#0\ta dog\n",
        "c.json": '{"images": [{"filename": "x.jpg", "sentences": [{"raw": "a dog"}]}]}',
    }.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert read_flickr(tmp_path / name).captions == {"x.jpg": ["a dog"]}
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"image": "x.jpg", "caption": "a dog"}\n')
    assert read(tmp_path / "d.jsonl", tmp_path, tmp_path).captions == {"x.jpg": ["a dog"]}


def test_empty_pictures_are_counted(tmp_path, capsys):
    """Null, no bytes, no bytes under a name: an error or left out, as other images that are missing."""
    whole = [path.read_bytes() for path in write_noise_images(tmp_path / "noise", 2)]
    empty = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": b"", "path": "a.png"}]
    pictures = [{"bytes": whole[0], "path": None}, *empty, {"bytes": whole[1], "path": None}]
    rows = parquet(tmp_path / "x.parquet", pictures, [f"caption {number}" for number in range(6)])
    source = read(rows, tmp_path)
    assert [text for texts in source.captions.values() for text in texts] == ["caption 0", "caption 5"]
    with pytest.raises(UserError, match=r"^4 images without a picture, the first is row 2; .*missing_images drop"):
        usable_images(source, tmp_path / "written", "error")
    assert len(usable_images(source, tmp_path / "written", "drop")) == 2
    assert "Left out: 4 images without a picture, the first is row 2." in capsys.readouterr().out
    plain = parquet(tmp_path / "y.parquet", [whole[0], b"", None], ["x", "y", "z"])
    assert read(plain, tmp_path).without_pictures == ("row 2", "row 3")
