"""Annotation files as people have them: what is read, and the one line on what is not."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from lad_pl.data import read_annotations
from lad_pl.errors import UserError


def entry(**changes: object) -> dict:
    return {"id": 0, "image_ids": ["a.png", "b.png", "c.png"], "index": 0, "caption": "A dog"} | changes


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_annotations(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    str(error.value).encode()  # it can be printed
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_ids": ["a.png", "./a.png"]}, "sample 1 (id 7) shows the same image twice ('a.png' and './a.png' name"),
        ({"image_ids": ["a.png", "b/../a.png"]}, "the same image twice"),
        ({"image_ids": ["a.png", "b//c.png", "b/./c.png"]}, "the same image twice"),
        ({"image_ids": ["a.png", "a.png"]}, "the same image twice;"),
        ({"image_ids": ["a.png", ""]}, "the image name '' names no file"),
        ({"image_ids": ["a.png", "b\0.png"]}, "'b\\x00.png' has characters that no file name has"),
        ({"image_ids": ["a.png", "\ud83d.png"]}, "'\\ud83d.png' has characters"),
        ({"caption": "half \ud83d"}, "sample 1 (id 7): the caption 'half \\ud83d' has half of a character"),
        ({"caption": [[["a"]]]}, "caption must be a text"),
        ({"caption": " \n"}, "the caption is empty"),
        ({"index": True}, "sample 1 (id 7): index is True; it must be a whole number"),
        ({"index": 1.0}, "index is 1.0; it must be a whole number"),
        ({"index": float("nan")}, "index is nan; it must be a whole number"),
        ({"index": float("inf")}, "index is inf"),
        ({"index": ["x" * 1000] * 1000}, "index is ['xxx"),
        ({"id": None}, "sample 1: id is None; it must be a text or a number"),
        ({"id": float("nan")}, "sample 1: id is nan"),
        ({"id": {"a": 1}}, "sample 1: id is {'a': 1}"),
        ({"id": "\udfff"}, "sample 1: the id '\\udfff' has half of a character"),
    ],
)
def test_a_sample_that_means_nothing(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([entry(), entry(id=7) | changes]))
    assert message in refusal(path)


@pytest.mark.parametrize(("indices", "hinted"), [([1, 3, 2], True), ([3], True), ([0, 3], False), ([4, 1], False)])
def test_indices_that_count_from_one(tmp_path: Path, indices: list[int], hinted: bool) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([entry(id=number, index=index) for number, index in enumerate(indices)]))
    line = refusal(path)
    assert f"outside its 3 images (0 to 2).{' The indices of this file look 1-based' if hinted else ''}" in line
    assert hinted == ("1-based" in line)


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([entry()]).replace('"index": 0', '"index": 0, "index": 1'))
    assert "an object has the key 'index' twice" in refusal(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"id": ' + "[" * 100_000 + "]" * 100_000 + "}]"])
def test_deep_nesting(tmp_path: Path, text: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(text)
    assert "is not valid JSON" in refusal(path)


def test_encodings(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    text = json.dumps([entry(caption="Ein Bär 🐻\nwith\ttab")], ensure_ascii=False)
    path.write_bytes(codecs.BOM_UTF8 + text.encode())
    (sample,) = read_annotations(path)
    assert sample.caption == "Ein Bär 🐻\nwith\ttab" and sample.id == "0"
    for encoding, message in (("utf-16", "is UTF-16 text; save it as UTF-8"), ("latin-1", "is not UTF-8 text")):
        path.write_bytes(text.replace("🐻", "").encode(encoding))
        assert message in refusal(path)
    path.write_bytes(json.dumps([entry()]).encode("utf-16-le"))  # without a mark
    assert "save it as UTF-8" in refusal(path)
