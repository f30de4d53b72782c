"""Any picture as 8-bit RGB, against arithmetic of our own on the same samples."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from lad_pl import UserError
from lad_pl.data.images import open_image
from lad_pl.data.rgb import from_array, to_rgb

SIZE = (6, 10)  # height and width


def png(path: Path, samples: np.ndarray, depth: int, colour: int, transparent: bytes = b"") -> Path:
    """A PNG written by hand, as Pillow writes neither gray of 2 or 4 bits with a transparent value nor 16-bit RGB."""
    raw = b""
    for row in samples:
        if depth == 16:
            raw += b"\0" + row.astype(">u2").tobytes()
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            raw += b"\0" + np.packbits(bits).tobytes()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    width = samples.shape[1] // (3 if colour == 2 else 1)
    header = struct.pack(">IIBBBBB", width, samples.shape[0], depth, colour, 0, 0, 0)
    hidden = chunk(b"tRNS", transparent) if transparent else b""
    content = chunk(b"IHDR", header) + hidden + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def tiff(path: Path, values: np.ndarray, **tags: float) -> Path:
    """A gray TIFF with declared properties: photometric, smallest and largest; of integers, lowest and highest."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        number = {"photometric": 262, "smallest": 340, "largest": 341, "lowest": 280, "highest": 281}[name]
        directory.tagtype[number] = 12 if number in (340, 341) else 3
        directory[number] = value
    Image.fromarray(values).save(path, tiffinfo=directory)
    return path


def pixels(path: Path, as_seen: bool = False) -> np.ndarray:
    image = open_image(path, as_seen)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.fixture
def values() -> np.ndarray:
    """Gray of 16 bits."""
    values = np.random.default_rng(5).integers(0, 65536, SIZE).astype(np.uint16)
    values[0, :4] = 0, 128, 129, 65535
    return values


def test_gray_of_16_bits(tmp_path: Path, values: np.ndarray) -> None:
    expected = np.round(values / 257)
    Image.fromarray(values).save(tmp_path / "little.tif")
    Image.fromarray(values.astype(">u2")).save(tmp_path / "big.tif")
    Image.fromarray(values).save(tmp_path / "gray.png")
    for name in ("little.tif", "big.tif", "gray.png"):
        for as_seen in (False, True):
            found = pixels(tmp_path / name, as_seen)
            assert (found == expected[..., None]).all(), name
    negative = pixels(tiff(tmp_path / "negative.tif", values, photometric=0))
    assert (negative == np.round((65535 - values.astype(int)) / 257)[..., None]).all()


def test_gray_with_a_declared_range(tmp_path: Path, values: np.ndarray) -> None:
    """Integers of 32 bits and floats."""
    for kind in (np.int32, np.float32):
        path = tiff(tmp_path / "declared.tif", values.astype(kind) - 300, smallest=-300, largest=65235)
        assert (pixels(path) == np.round(values / 257)[..., None]).all()
    twelve_bits = tiff(tmp_path / "twelve.tif", values // 16, lowest=0, highest=4095)
    assert (pixels(twelve_bits) == np.round(values // 16 / 4095 * 255)[..., None]).all()
    shares = (values / 65535).astype(np.float32)
    assert (pixels(tiff(tmp_path / "share.tif", shares)) == np.round(shares.astype(float) * 255)[..., None]).all()
    assert (pixels(tiff(tmp_path / "half.tif", shares, smallest=0, largest=2)).max()) == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.astype(np.int32), "integers from 0 to 65535, without a range"),
        (lambda values: values.astype(np.float32), "floats from 0 to 65535, without a range"),
        (lambda values: values / np.float32(65535) - np.float32(0.1), "floats from -0.1 to 0.9, without a range"),
        (lambda values: np.where(values > 9, values, np.nan).astype(np.float32), "not finite"),
        (lambda values: values // 256, "where white is 65535, which is nearly black"),
        (lambda values: values // 16, "from 0 to 4095 where white is 65535, which is nearly black"),
    ],
)
def test_gray_that_nobody_can_scale(tmp_path: Path, values: np.ndarray, change, message: str) -> None:
    with pytest.raises(UserError, match=f"deep.tif cannot be read.*{message}"):
        open_image(tiff(tmp_path / "deep.tif", change(values)))


def test_a_negative_of_floats_says_its_range_or_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    shares = (values / 65535).astype(np.float32)
    with pytest.raises(UserError, match="a negative without a range"):
        open_image(tiff(tmp_path / "negative.tif", shares, photometric=0))
    negative = pixels(tiff(tmp_path / "negative.tif", shares, photometric=0, smallest=0, largest=1))
    assert (negative == np.round((1 - shares.astype(float)) * 255)[..., None]).all()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
def test_transparency_is_shown_on_white(mode: str) -> None:
    rgba = np.random.default_rng(6).integers(0, 256, (*SIZE, 4)).astype(np.uint8)
    rgba[0, :3, 3] = 0, 128, 255
    image = Image.fromarray(rgba)
    if mode in ("LA", "La"):
        rgba[..., :3] = rgba[..., :1]
        image = Image.fromarray(np.ascontiguousarray(rgba[..., [0, 3]]))
    if mode == "PA":
        image = Image.new("PA", SIZE[::-1])
        image.putpalette(list(range(0, 240, 10)) * 8)
        image.putdata([(index % 64, int(a)) for index, a in enumerate(rgba[..., 3].ravel())])
        rgba = np.asarray(image.convert("RGBA"))
    image = image.convert(mode)
    seen = np.asarray(to_rgb(image, as_seen=True)).astype(float)
    expected = on_white(rgba[..., :3].astype(float), rgba[..., 3].astype(float))
    # Colours multiplied by their opacity have lost digits, but not where they are shown.
    assert np.abs(seen - expected).max() <= (1.5 if mode[-1] == "a" else 0.51)
    if mode[-1] == "A":  # the published reading
        assert (np.asarray(to_rgb(image)) == rgba[..., :3]).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_of_a_png(tmp_path: Path, values: np.ndarray, depth: int) -> None:
    gray = values.astype(int) % 2**depth
    path = png(tmp_path / "gray.png", gray, depth, 0, struct.pack(">H", gray[2, 3]))
    shown = np.round(gray / (2**depth - 1) * 255)
    assert (pixels(path) == shown[..., None]).all()
    assert (pixels(path, as_seen=True) == np.where(gray == gray[2, 3], 255, shown)[..., None]).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_of_a_png(tmp_path: Path, values: np.ndarray, depth: int) -> None:
    colours = np.stack([values, values[::-1], values[:, ::-1]], axis=-1).astype(int) % 2**depth
    one = struct.pack(">HHH", *colours[2, 3])
    path = png(tmp_path / "colours.png", colours.reshape(SIZE[0], -1), depth, 2, one)
    shown = colours >> (depth - 8)
    assert (pixels(path) == shown).all()
    hidden = (shown == shown[2, 3]).all(-1, keepdims=True)
    assert (pixels(path, as_seen=True) == np.where(hidden, 255, shown)).all()


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_palette_with_opacities(tmp_path: Path, values: np.ndarray, name: str) -> None:
    palette = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [9, 9, 9]])
    opacities = np.array([0, 255, 255, 255] if name == "a.gif" else [0, 100, 200, 255])
    image = Image.new("P", SIZE[::-1])
    image.putdata((values % 4).ravel().tolist())
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / name, transparency=0 if name == "a.gif" else bytes(opacities.tolist()))
    shown = palette[values % 4]
    assert (pixels(tmp_path / name) == shown).all()
    expected = on_white(shown, opacities[values % 4])
    assert np.abs(pixels(tmp_path / name, as_seen=True) - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("1", 1, "a.png", (255, 255, 255)),
        ("CMYK", (0, 255, 51, 51), "a.jpg", (204, 0, 163)),
        ("CMYK", (0, 255, 51, 51), "a.tif", (204, 0, 163)),
        ("YCbCr", (150, 100, 150), "a.tif", (181, 144, 100)),
        ("RGBX", (1, 2, 3, 0), "a.tif", (1, 2, 3)),
        ("LAB", (255, 128, 128), "a.tif", (255, 255, 255)),
    ],
)
def test_other_modes(tmp_path: Path, mode: str, colour, name: str, expected: tuple[int, ...]) -> None:
    Image.new(mode, (16, 16), colour).save(tmp_path / name)
    for as_seen in (False, True):
        assert np.abs(pixels(tmp_path / name, as_seen)[3, 3] - expected).max() <= 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp"])
def test_the_first_of_several_frames(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert (pixels(tmp_path / name, as_seen=True) == (255, 0, 0)).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_all_orientations(tmp_path: Path, name: str) -> None:
    """The eight values of EXIF's orientation: what is written down turned is seen upright."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    for orientation, array in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(array)).save(tmp_path / name, exif=exif)
        seen = pixels(tmp_path / name, as_seen=True)
        assert seen.shape == upright.shape
        assert np.abs(seen[4::8, 8::16] - upright[4::8, 8::16]).max() < 40, orientation


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_says_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert pixels(tmp_path / "a.png", as_seen=True).shape == (4, 8, 3)


def test_arrays() -> None:
    gray = np.random.default_rng(7).integers(0, 256, SIZE).astype(np.uint8)
    colour = np.stack([gray, gray.T.reshape(SIZE), 255 - gray], axis=-1)
    deep = gray.astype(np.uint16) * 257
    for array in (gray, gray[..., None], gray / 255, (gray / 255).astype(np.float16), deep):
        found = np.asarray(to_rgb(from_array(array)))
        assert np.abs(found.astype(int) - gray[..., None]).max() <= (array.dtype == np.float16)
    for array in (colour, colour / 255, np.asfortranarray(colour)):
        assert (np.asarray(from_array(array)) == colour).all()
        assert (np.asarray(from_array(np.moveaxis(array, -1, 0), channels_first=True)) == colour).all()
    half = np.concatenate([colour, np.full((*SIZE, 1), 51, np.uint8)], axis=-1)
    seen = np.asarray(to_rgb(from_array(half), as_seen=True))
    assert np.abs(seen - (colour * 0.2 + 255 * 0.8)).max() <= 0.51


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), "its shape is 3 x 8 x 8"),
        (np.zeros((8, 8, 2), np.uint8), "its shape is 8 x 8 x 2"),
        (np.zeros((0, 8, 3), np.uint8), "its shape is 0 x 8 x 3"),
        (np.zeros((2, 8, 8, 3), np.uint8), "its shape is 2 x 8 x 8 x 3"),
        (np.zeros(8, np.uint8), "its shape is 8"),
        (np.zeros((8, 8, 3), np.int64), "its values are int64"),
        (np.zeros((8, 8, 3), bool), "its values are bool"),
        (np.zeros((8, 8), object), "its values are object"),
        (np.full((8, 8, 3), 255.0), "floats are from 255 to 255"),
        (np.full((8, 8, 3), -0.1), "floats are from -0.1"),
        (np.full((8, 8, 3), np.nan), "floats are from nan"),
    ],
)
def test_other_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_array(array)
