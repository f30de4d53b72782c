"""A person's photos: which files are photos, and how they are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny_vlm import write_noise_images

from lad_pl import UserError
from lad_pl.data.photos import PhotoData, find_photos


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
