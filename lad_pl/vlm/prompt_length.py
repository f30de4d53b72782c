"""Estimate the length of a sample's prompts without decoding its images, for batches of a bounded number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lad_pl.errors import UserError
from lad_pl.types import PermutedSample, Sample
from lad_pl.vlm.encoder import PromptEncoder

Size = tuple[int, int]

_GRAIN = 28
"""Image sides are rounded to multiples of this many pixels, so that few sizes need to be measured."""


class PromptLengths:
    """Estimates tokens per prompt: the caption's, and those of blank images of the same (rounded) sizes.

    Args:
        encoder: the encoder of the model's prompts.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._of_blank: dict[tuple[Size, int], float] = {}
        self._of_caption: dict[str, int] = {}

    def __call__(self, sample: Sample, sizes: Sequence[Size]) -> int:
        """Approximate number of tokens of the sample's prompt.

        Args:
            sample: the sample.
            sizes: width and height in pixels of its images, after any resizing by this toolkit.
        """
        caption = self._of_caption.get(sample.caption)
        if caption is None:
            caption = self._of_caption[sample.caption] = len(
                self._encoder.tokenizer(sample.caption, add_special_tokens=False)["input_ids"]
            )
        return caption + round(sum(self._share(size, len(sizes)) for size in map(_rounded, sizes)))

    def _share(self, size: Size, count: int) -> float:
        """Tokens per image of a prompt with ``count`` images of this size, the template's text included."""
        if (size, count) not in self._of_blank:
            blank = PermutedSample(Sample("blank", ("",) * count, "", None), 0, (), (Image.new("RGB", size),) * count)
            try:
                self._of_blank[size, count] = self._encoder.num_tokens(blank) / count
            except UserError:  # encoding the sample itself raises it again, with the sample's id
                self._of_blank[size, count] = 0
        return self._of_blank[size, count]


def _rounded(size: Size) -> Size:
    width, height = (max(_GRAIN, round(side / _GRAIN) * _GRAIN) for side in size)
    return width, height
