"""Plain transformers: what a careful user writes without lad_pl.

One prompt at a time; every permutation decodes, processes and encodes its images anew; ``generate`` for the answer, a
forward pass with eager attention and ``output_attentions`` for the evidence, and a full forward pass per answer prefix
where the candidates have two digits. Only the readouts, from evidence to decisions, are lad_pl's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.ours import Bench
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.types import Calibration, Evidence, Sample

TEMPLATE = (
    "Given {n} images indexed from 1 to {n}, identify the image that best matches the provided caption. "
    "Respond with the index number only and nothing else.\nCaption: {caption}\nAnswer: "
)
Inputs = dict[str, Tensor]


class PlainModel:
    """A bench's model and processor."""

    def __init__(self, bench: Bench) -> None:
        self.size = (bench.options.image_size, bench.options.image_size)
        self.processor = AutoProcessor.from_pretrained(bench.folder)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            bench.folder, dtype=bench.options.dtype, attn_implementation="eager", device_map=bench.options.device
        ).eval()
        depth = self.model.config.get_text_config().num_hidden_layers
        self.layers = range(round(0.58 * depth), depth)

    @torch.no_grad()
    def __call__(
        self, sample: Sample, permutation: Sequence[int], photos: Path, single_pass: bool = False
    ) -> tuple[str, Evidence]:
        """The generated answer, and the evidence of one prompt.

        Args:
            sample: the question.
            permutation: the order of its images.
            photos: folder of the images.
            single_pass: read the first token's logits and the attention out of ``generate`` itself, in place of a
                forward pass of their own.
        """
        names = [str(number) for number in range(1, len(permutation) + 1)]
        inputs = self.inputs(sample, permutation, photos)
        if single_pass:
            answer, logits, attentions = self.generate_all(inputs, len(names[-1]) + 1)
        else:
            answer = self.generate(inputs, len(names[-1]) + 1)
            output = self.model(**inputs, output_attentions=True, logits_to_keep=1)
            logits, attentions = output.logits[0, -1], output.attentions
        attention = self.image_attention(attentions, inputs["input_ids"][0].tolist())
        return answer, Evidence.from_heads(self.log_probs(inputs, logits, names)[None], attention[None]).cpu()

    def inputs(self, sample: Sample, permutation: Sequence[int], photos: Path) -> Inputs:
        """Decode, resize and process all images of the prompt."""
        paths = [photos / sample.images[index] for index in permutation]
        images = [Image.open(path).convert("RGB").resize(self.size, Image.Resampling.BICUBIC) for path in paths]
        text = TEMPLATE.format(n=len(images), caption=sample.caption)
        turn = {"role": "user", "content": [*[{"type": "image"}] * len(images), {"type": "text", "text": text}]}
        prompt = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        return dict(self.processor(text=[prompt], images=images, return_tensors="pt").to(self.model.device))

    def generate(self, inputs: Inputs, new_tokens: int) -> str:
        """The answer as text."""
        tokens = self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        return self.text(tokens, inputs)

    def generate_all(self, inputs: Inputs, new_tokens: int) -> tuple[str, Tensor, Sequence[Tensor]]:
        """The answer, the first new token's logits (V,), and the prompt's attention maps."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            output_attentions=True,
        )
        return self.text(output.sequences, inputs), output.logits[0][0], output.attentions[0]

    def text(self, tokens: Tensor, inputs: Inputs) -> str:
        return self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def image_attention(self, attentions: Sequence[Tensor], tokens: list[int]) -> Tensor:
        """(L, H, N): the last token's attention on each image, delimiters included."""
        config = self.model.config
        starts = [place for place, token in enumerate(tokens) if token == config.vision_start_token_id]
        ends = [place for place, token in enumerate(tokens) if token == config.vision_end_token_id]
        rows = torch.stack([attentions[layer][0, :, -1].float() for layer in self.layers])
        return torch.stack([rows[..., a : b + 1].sum(-1) for a, b in zip(starts, ends, strict=True)], -1)

    def log_probs(self, inputs: Inputs, first: Tensor, names: Sequence[str]) -> Tensor:
        """(N,): log-softmax over the characters that can follow, step by step; the end of the turn is one."""
        scores = dict.fromkeys(names, torch.zeros((), device=first.device))
        ended = [f"{name}$" for name in names]
        for prefix in sorted({name[:end] for name in ended for end in range(len(name))}, key=len):
            following = sorted({name[len(prefix)] for name in ended if name.startswith(prefix)})
            if len(following) == 1:
                continue
            logits = self.logits_after(inputs, prefix) if prefix else first
            steps = logits[[self.token(character) for character in following]].float().log_softmax(-1)
            for name in names:
                if f"{name}$".startswith(prefix):
                    scores[name] = scores[name] + steps[following.index(f"{name}$"[len(prefix)])]
        return torch.stack([scores[name] for name in names])

    def logits_after(self, inputs: Inputs, prefix: str) -> Tensor:
        """(V,): another full forward pass, images and all."""
        tokens = inputs["input_ids"].new_tensor([[self.token(character) for character in prefix]])
        longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], tokens], 1))
        longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
        if "mm_token_type_ids" in inputs:
            longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], 1)
        return self.model(**longer, logits_to_keep=1).logits[0, -1]

    def token(self, character: str) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.convert_tokens_to_ids("<|im_end|>" if character == "$" else character)


def decisions(evidence: Evidence, calibration: Calibration, readouts: Sequence[str]) -> dict[str, int]:
    """Every readout's chosen position for one prompt."""
    settings = ReadoutSettings()
    return {name: int(READOUTS[name](evidence, calibration, settings).argmax()) for name in readouts}
