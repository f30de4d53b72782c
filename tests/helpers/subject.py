"""One family's tiny checkpoint, loaded as lad_pl does and as a user of transformers would."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from families import Family
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from lad_pl import PromptSpec, VisionLanguageModel, VLMSpec
from lad_pl.data.permutations import random_permutations
from lad_pl.types import PermutedSample, Sample

CAPTIONS = ("A dog lies on the grass.", "Two giraffes in a room, with people looking at them.")


PLAIN = PromptSpec()


@dataclass
class Subject:
    """One family's tiny checkpoint, loaded as lad_pl does and as a user of transformers would."""

    family: Family
    folder: Path
    pictures: list[Image.Image]

    @cached_property
    def vlm(self) -> VisionLanguageModel:
        return VisionLanguageModel.load(VLMSpec(str(self.folder), dtype="float32"))

    @cached_property
    def eager(self) -> Any:
        return AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @cached_property
    def readable(self) -> list[int]:
        return [layer for layer, module in enumerate(self.vlm.layers.attention) if module is not None]

    def entry(self, n: int, count: int, number: int = 0) -> PermutedSample:
        sample = Sample(str(number), tuple(map(str, range(n))), CAPTIONS[number], n - 1)
        pictures = (self.pictures[number:] + self.pictures[:number])[:n]
        return PermutedSample(sample, number, random_permutations(n, count), tuple(pictures))

    def plain_inputs(
        self, entry: PermutedSample, permutation: tuple[int, ...], prompt: PromptSpec = PLAIN
    ) -> tuple[dict[str, Tensor], list[Any]]:
        """All images of one permutation processed anew; the model's inputs, and (start, end) in tokens of the text
        that the processor wrote for each image."""
        text = prompt.text(entry.sample.caption, len(permutation))
        content = [{"type": "image", "image": entry.images[p]} for p in permutation]
        inputs = self.vlm.processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"return_offsets_mapping": True, "return_text_replacement_offsets": True},
        )
        characters = inputs.pop("offset_mapping")[0].tolist()
        written = [entry["new_span"] for entry in inputs.pop("text_replacement_offsets")[0]]
        spans = [
            [token for token, (start, end) in enumerate(characters) if first <= start < end <= last]
            for first, last in written
        ]
        # Some processors write half precision.
        return {
            name: value.to(self.eager.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }, spans


def decoder_layers(model: Any) -> Any:
    decoder = model.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.model.layers
