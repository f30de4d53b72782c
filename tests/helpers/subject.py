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
        """Inputs and image tokens of :meth:`plain_prompt`."""
        return self.plain_prompt(entry, permutation, prompt)[:2]

    def plain_prompt(
        self, entry: PermutedSample, permutation: tuple[int, ...], prompt: PromptSpec = PLAIN
    ) -> tuple[dict[str, Tensor], list[Any], list[int]]:
        """All images of one permutation processed anew; the model's inputs, the tokens of the text that the processor
        wrote for each image, and those that hold characters of the caption."""
        text = prompt.text(entry.sample.caption, len(permutation))
        content = [{"type": "image", "image": entry.images[p]} for p in permutation]
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        inputs = self.vlm.processor.apply_chat_template(
            turns,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"return_offsets_mapping": True, "return_text_replacement_offsets": True},
        )
        characters = inputs.pop("offset_mapping")[0].tolist()
        replaced = inputs.pop("text_replacement_offsets")[0]
        written = [image["new_span"] for image in replaced]
        spans = [
            [token for token, (start, end) in enumerate(characters) if first <= start < end <= last]
            for first, last in written
        ]
        chat = self.vlm.processor.apply_chat_template(turns, add_generation_prompt=True)
        grown = sum(len(image["replacement"]) - len(image["text"]) for image in replaced)
        # Two processors write something before the chat.
        chat = " " * (max(last for _, last in characters) - grown - len(chat)) + chat
        for image in reversed(replaced):
            start, end = image["span"]
            chat = chat[:start] + image["replacement"] + chat[end:]
        start = chat.index(f"Caption: {entry.sample.caption}\nAnswer") + len("Caption: ")
        end = start + len(entry.sample.caption)
        caption = [token for token, (first, last) in enumerate(characters) if first < end and last > start]
        # Some processors write half precision.
        inputs = {
            name: value.to(self.eager.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }
        return inputs, spans, caption


def decoder_layers(model: Any) -> Any:
    decoder = model.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.model.layers
