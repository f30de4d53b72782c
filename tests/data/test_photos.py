"""A person's photos: which files are photos, and how they are seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_vlm import write_noise_images

from lad_pl import UserError
from lad_pl.data.images import FORMATS
from lad_pl.data.photos import LeftOut, PhotoData, find_photos


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    write_noise_images(folder, 7, sizes=((60, 90), (90, 60)))
    (folder / "notes.txt").write_text("no photo")
    return folder


def test_a_photo_is_seen_as_people_see_it(tmp_path: Path) -> None:
    upright = Image.new("RGB", (40, 20), "red")
    upright.paste("blue", (0, 0, 20, 20))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    seen = PhotoData([str(tmp_path)], ["x"], group_size=2).image_loader(None)(str(tmp_path / "turned.png"))
    assert seen.size == (40, 20)
    assert (seen.getpixel((5, 10)), seen.getpixel((35, 10))) == ((0, 0, 255), (255, 0, 0))


def test_what_is_a_photo(album: Path, tmp_path: Path) -> None:
    names = [Path(photo).name for photo in find_photos([str(album)])]
    assert names == [f"noise_{number:03d}.png" for number in range(7)]
    assert find_photos([f"{album}/*", str(album / "noise_000.png")]) == find_photos([str(album)])
    (tmp_path / "folder").mkdir()
    for name in (".hidden.png", "invoice.pdf", "drawing.eps"):
        (tmp_path / "folder" / name).write_bytes((album / "noise_000.png").read_bytes())
    with pytest.raises(UserError, match="finds no image file"):
        find_photos([str(tmp_path / "folder")])
    (tmp_path / "again").symlink_to(album)
    assert len(find_photos([str(album), str(tmp_path / "again")])) == 7
    (tmp_path / "a[1].png").write_bytes((album / "noise_000.png").read_bytes())
    assert find_photos([str(tmp_path / "a[1].png")]) == (str(tmp_path / "a[1].png"),)


def test_the_name_and_the_content_of_a_photo_are_free(album: Path, tmp_path: Path) -> None:
    """All but control characters and halves of surrogate pairs, which are bytes that are no text."""
    names = [
        "\u202f",
        "\u00a0",
        "\u3000",
        "\u200c\u200d",
        "\u00ad",
        "\U0001f600",
        "\u2028",
        "\ue000",
        "%s",
        "'\"\\",
        "x" * 200,
    ]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{name}.png")
    assert {Path(photo).stem for photo in find_photos([str(tmp_path)])} == set(names)
    for name in ("bell\a.png", "line\nbreak.png", "half\udce9.png", "\x85.png"):
        shutil.copy(album / "noise_000.png", tmp_path / name)
        with pytest.raises(UserError, match="has characters that cannot be written; rename the file") as error:
            find_photos([str(tmp_path)])
        assert str(error.value).isprintable()
        (tmp_path / name).unlink()


def test_heic(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.HEIC", quality=95)
    data = PhotoData([str(tmp_path)], ["x"], group_size=2)
    assert find_photos([str(tmp_path)]) == (str(tmp_path / "a.HEIC"),)
    assert np.abs(np.asarray(data.image_loader(None)(str(tmp_path / "a.HEIC"))) - [255, 0, 0]).max() < 8


@pytest.mark.skipif("HEIF" in FORMATS, reason="pillow-heif is here")
def test_heic_without_its_library(album: Path) -> None:
    for name in ("1.HEIC", "2.heic", "3.hif", "4.heif"):
        (album / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    left_out = LeftOut()
    assert len(find_photos([str(album)], left_out)) == 7
    (sentence,) = left_out.sentences()
    assert sentence == "Left out HEIC photos: 4 (1.HEIC, 2.heic, 3.hif, ...); to read them, pip install pillow-heif."
    with pytest.raises(UserError, match=r"1.HEIC cannot be read \(HEIC photos; to read them, pip install pillow-heif"):
        find_photos([str(album / "1.HEIC")])
    with pytest.raises(UserError, match=r"finds no image file.*Left out HEIC photos: 2 \(1.HEIC, 2.heic\)"):
        find_photos([f"{album}/*[cC]"])
