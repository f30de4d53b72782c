"""Image files: what is wrong with them, all at once and before a model is loaded."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from lad_pl import UserError
from lad_pl.data import MultiImageData
from lad_pl.data.annotations import write_annotations
from lad_pl.data.images import image_fault, image_faults, open_image


def encoded(form: str, size: tuple[int, int] = (40, 30), **options) -> bytes:
    noise = np.random.default_rng(8).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, form, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"size": (700, 500), "quality": 95}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        pytest.param("AVIF", {}, marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow lacks AVIF")),
    ],
)
def test_a_cut_off_file_is_found_by_its_header_or_its_end(tmp_path: Path, form: str, options: dict) -> None:
    whole = encoded(form, **options)
    path = tmp_path / "picture"
    path.write_bytes(whole)
    assert image_fault(path) is None
    for length in [*np.linspace(1, len(whole) - 1, 25).astype(int), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        fault = image_fault(path)
        assert fault == image_fault(path, decode=True), length
        if fault is None:  # Pillow shows the whole picture without its last byte
            open_image(path)
        else:
            assert fault.startswith("cannot be read (")


def test_what_follows_a_picture_does_no_harm(tmp_path: Path) -> None:
    """Phones append videos to JPEGs."""
    for form in ("JPEG", "PNG", "GIF"):
        (tmp_path / form).write_bytes(encoded(form, (300, 200)) + bytes(300_000))
    assert image_faults(tmp_path.iterdir()) == {}


def test_each_fault_has_words_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "page.jpg").write_text("\n<!DOCTYPE html><html>")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "text.jpg").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "large.png").write_bytes(encoded("PNG", (40, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    faults = image_faults([*tmp_path.iterdir(), tmp_path / "gone.jpg", tmp_path / "nul\0.jpg", tmp_path / "\ud83d.jpg"])
    found = {path.name: fault for path, fault in faults.items()}
    expected = {
        "folder.jpg": "is a folder",
        "empty.jpg": "is empty (0 bytes)",
        "link.jpg": "is a link to nowhere.jpg, which does not exist",
        "page.jpg": "cannot be read (a web page, no picture)",
        "text.jpg": "cannot be read (no picture in JPEG, PNG,",
        "pipe.jpg": "is no regular file",
        "large.png": "has more than 1,000 pixels",
        "gone.jpg": "does not exist",
    }
    for name, start in expected.items():
        assert found[name].startswith(start), name
        with pytest.raises(UserError, match=f"image file .*{name} "):
            open_image(tmp_path / name)
    assert {"nul\0.jpg", "\ud83d.jpg"} < found.keys()


def test_all_broken_images_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "whole.png").write_bytes(encoded("PNG"))
    names = [f"{number}.png" for number in range(27)]
    for name in names[1:]:
        (tmp_path / name).write_bytes(encoded("PNG")[:-100])
    samples = [
        {"id": f"s{number}", "image_ids": ["whole.png", name], "index": 0, "caption": "x"}
        for number, name in enumerate(names)
    ]
    write_annotations(tmp_path / "annotations.json", samples)
    data = MultiImageData(str(tmp_path / "annotations.json"), num_calibration=0, num_permutations=2)
    with pytest.raises(UserError) as error:
        data.setup("test")
    message = str(error.value)
    assert message.startswith(
        f"27 of 28 image files cannot be used: Sample s0: image file {tmp_path}/0.png does not exist; "
    )
    assert f"Sample s9: image file {tmp_path}/9.png cannot be read (" in message
    assert "s10:" not in message
    assert "; and 17 more; " in message
    assert "data.images" in message
    assert "\n" not in message


def test_full_decodes_what_the_header_does_not_show(tmp_path: Path) -> None:
    damaged = bytearray(encoded("PNG"))
    damaged[damaged.index(b"IDAT") + 4] = 0
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "b.png").write_bytes(damaged)
    sample = {"id": 7, "image_ids": ["a.png", "b.png"], "caption": "x"}
    write_annotations(tmp_path / "annotations.json", [sample])
    options = {"num_calibration": 0, "num_permutations": 2}
    MultiImageData(str(tmp_path / "annotations.json"), **options).setup("predict")
    full = MultiImageData(str(tmp_path / "annotations.json"), **options, image_check="full")
    with pytest.raises(UserError, match=r"^Sample 7: image file .*b.png cannot be read"):
        full.setup("predict")
