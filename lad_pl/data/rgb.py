"""Any picture as 8-bit RGB: every mode of Pillow, deep gray, transparency, and arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

_WHITE_IS_ZERO = 0
_PHOTOMETRIC, _BITS_PER_SAMPLE = 262, 258  # tags of TIFF
_RANGES = ((340, 341), (280, 281))  # its tags of the smallest and largest value: of any type, and of integers
_DARK = 1 / 12  # 12 bits in 16 come to 1 / 16
_PACKED_GRAY = {"L;2": 85, "L;4": 17}  # PNG: Pillow spreads the samples to 0 ... 255, but not the transparent one


class GrayScale(NamedTuple):
    """Which values of a deep gray picture are black and white."""

    black: float
    white: float


def to_rgb(image: Image.Image, as_seen: bool = False) -> Image.Image:
    """8-bit RGB; of several frames or pages, the one that the picture is at.

    Gray of more than 8 bits is scaled by the range that its format declares. Pillow's own conversion cuts it off at
    255, which leaves a white picture.

    Args:
        image: of any mode.
        as_seen: upright as its EXIF orientation says and with what is transparent on white, as people see it.
            Otherwise as ``convert("RGB")`` reads it, which shows the colours that lie hidden under the transparency.

    Raises:
        ValueError: deep gray whose range is not known, or that would be black.
    """
    scale = _gray_scale(image)
    _match_transparent_value(image)
    if as_seen:
        image = _upright(image)
    if is_deep(image):
        gray = Image.fromarray(eight_bit(np.asarray(image), scale))
        hidden = image.info.get("transparency")
        if as_seen and isinstance(hidden, int):
            gray.paste(255, mask=Image.fromarray(np.asarray(image) == hidden))
        return gray.convert("RGB")
    if image.mode in ("La", "RGBa"):  # colours multiplied by their opacity
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if as_seen and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif "transparency" in image.info:
        image.load()
        image = image.copy()
        del image.info["transparency"]  # Pillow warns that it is lost
    return image.convert("RGB")


def from_array(array: np.ndarray, channels_first: bool = False) -> Image.Image:
    """A picture from an array: H x W gray, or H x W x C with C = 1 (gray), 3 (RGB) or 4 (RGB and opacity).

    Args:
        array: uint8, uint16, or floats from 0 to 1.
        channels_first: it is C x H x W.

    Raises:
        ValueError: another shape, type or range.
    """
    shape = " x ".join(map(str, array.shape))
    if channels_first and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise ValueError(f"its shape is {shape or '()'}")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == np.uint16:
        return Image.fromarray(eight_bit(array, GrayScale(0, 65535)))
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"its values are {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # nor if one is NaN
        raise ValueError(f"its floats are from {low:.6g} to {high:.6g}")
    return Image.fromarray(np.rint(array.astype(np.float64) * 255).astype(np.uint8))


def is_deep(image: Image.Image) -> bool:
    """Whether a picture is gray of more than 8 bits: 16 or 32, or floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def eight_bit(values: np.ndarray, scale: GrayScale | None) -> np.ndarray:
    """Deep values as uint8, from 0 (black) to 255 (white); v / 257, rounded, for the whole range of 16 bits.

    Args:
        values: integers or floats, of any shape.
        scale: what is black and white; None if nobody says. Floats from 0 to 1 say it themselves.

    Raises:
        ValueError: the range is not known, a value is not finite, or the values differ and all of them would be nearly
            black, as 12 bits stored in 16 are.
    """
    low, high = values.min(), values.max()
    kind = "floats" if np.issubdtype(values.dtype, np.floating) else "integers"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds values that are not finite")
    if scale is None and kind == "floats" and low >= 0 and high <= 1:
        scale = GrayScale(0, 1)
    if scale is None:
        raise ValueError(
            f"gray as {kind} from {low:.6g} to {high:.6g}, without a range that says which is black and which white; "
            "save it with 8 or 16 bits"
        )
    bottom, top = sorted(scale)  # a negative has them the other way round
    if high > low and (float(high) - bottom) / (top - bottom) < _DARK:
        raise ValueError(
            f"gray from {low:.6g} to {high:.6g} where white is {top:.6g}, which is nearly black; save it with 8 bits, "
            "or with the largest value that it can have (MaxSampleValue)"
        )
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return _levels(np.arange(65536), scale)[values]  # far less memory than to compute with every pixel
    return _levels(values, scale)


def _levels(values: np.ndarray, scale: GrayScale) -> np.ndarray:
    share = (values.astype(np.float64) - scale.black) / (scale.white - scale.black)
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def _gray_scale(image: Image.Image) -> GrayScale | None:
    """The range that a file declares for its deep gray; None if it declares none.

    Raises:
        ValueError: it is a negative, and declares none.
    """
    tags: Any = getattr(image, "tag_v2", {})
    declared = next((pair for pair in _RANGES if {*pair} <= {*tags}), None) if is_deep(image) else None
    if declared is not None:
        smallest, largest = (float(np.ravel(tags[tag])[0]) for tag in declared)
        if not -np.inf < smallest < largest < np.inf:
            return None
        scale = GrayScale(smallest, largest)
    elif image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        scale = GrayScale(0, 2**bits - 1)
    elif image.mode == "I" and image.format == "PNG":
        scale = GrayScale(0, 65535)
    elif tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and is_deep(image):
        raise ValueError("a negative without a range that says which value is black; save it with 8 or 16 bits")
    else:
        return None
    return scale if tags.get(_PHOTOMETRIC) != _WHITE_IS_ZERO else GrayScale(scale.white, scale.black)


def _match_transparent_value(image: Image.Image) -> None:
    """Bring a PNG's transparent value to the depth in which Pillow decodes the pixels; before they are decoded."""
    transparent = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # of a file whose pixels are not decoded yet
    raw = tiles[0].args if image.format == "PNG" and tiles else None
    if isinstance(transparent, int) and raw in _PACKED_GRAY:
        image.info["transparency"] = min(255, transparent * _PACKED_GRAY[raw])
    elif isinstance(transparent, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block, of which Pillow raises many kinds, says nothing
        return image
