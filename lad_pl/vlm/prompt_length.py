"""How long a sample's prompts will be, without decoding its images: for planning batches."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lad_pl.errors import UserError
from lad_pl.types import PermutedSample, Sample
from lad_pl.vlm.encoder import PromptEncoder

Size = tuple[int, int]

_GRAIN = 28
"""Image sides are rounded to this many pixels: close enough for a plan, and few sizes to measure."""


class PromptLengths:
    """Tokens of a prompt, from its caption's tokens and what the processor makes of blank images of the same sizes.

    Args:
        encoder: the model's input side.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._of_blank: dict[tuple[Size, int], float] = {}
        self._of_caption: dict[str, int] = {}

    def __call__(self, sample: Sample, sizes: Sequence[Size]) -> int:
        """Tokens of the sample's prompt.

        Args:
            sample: the sample.
            sizes: width and height in pixels of its images, as the processor is given them.
        """
        caption = self._of_caption.get(sample.caption)
        if caption is None:
            caption = self._of_caption[sample.caption] = len(
                self._encoder.tokenizer(sample.caption, add_special_tokens=False)["input_ids"]
            )
        return caption + round(sum(self._share(size, len(sizes)) for size in map(_rounded, sizes)))

    def _share(self, size: Size, count: int) -> float:
        """What one of ``count`` images of this size adds to a prompt; the words around them are divided among them."""
        if (size, count) not in self._of_blank:
            blank = PermutedSample(
                Sample("a blank one", ("",) * count, "", None), 0, (), (Image.new("RGB", size),) * count
            )
            try:
                self._of_blank[size, count] = self._encoder.num_tokens(blank) / count
            except UserError:  # encoding the sample itself will say so, and name it
                self._of_blank[size, count] = 0
        return self._of_blank[size, count]


def _rounded(size: Size) -> Size:
    width, height = (max(_GRAIN, round(side / _GRAIN) * _GRAIN) for side in size)
    return width, height
