"""A prompt's length, foreseen without its pixels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from tiny_vlm import write_noise_images

from lad_pl import PromptSpec, VisionLanguageModel
from lad_pl.types import PermutedSample, Sample
from lad_pl.vlm.prompt_length import PromptLengths


def test_lengths_are_those_of_the_encoded_prompts(tiny_vlm: VisionLanguageModel, tmp_path: Path) -> None:
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    paths = write_noise_images(tmp_path, 6, sizes=((56, 84), (112, 140), (84, 84)))
    images = tuple(Image.open(path).convert("RGB") for path in paths)
    length = PromptLengths(encoder)
    for caption, shown in (("A dog", images[:3]), ("A much longer caption, of many more words than that", images[3:])):
        sample = Sample("a", ("x", "y", "z"), caption, 0)
        batch = encoder([PermutedSample(sample, 0, ((0, 1, 2),), shown)])
        expected = batch.tokens["input_ids"].shape[1]
        assert abs(length(sample, [image.size for image in shown]) - expected) <= 0.02 * expected
