"""The demo models' architecture: Qwen2.5-VL with one or two million parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from lad_pl.demo.vocabulary import END_OF_TURN, PADDING


@dataclass(frozen=True)
class Architecture:
    """Sizes of the decoder."""

    layers: int = 4
    width: int = 128
    heads: int = 4

    @property
    def rotary_sections(self) -> list[int]:
        """How many of a head's rotary frequencies turn with time, height and width: [4, 6, 6] of 16."""
        pairs = self.width // self.heads // 2
        return [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]


def build_config(processor: Qwen2_5_VLProcessor, sizes: Architecture) -> Qwen2_5_VLConfig:
    """The configuration, with the token ids of this processor's tokenizer."""
    token_id = processor.tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": sizes.width,
            "intermediate_size": 2 * sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads,
            "max_position_embeddings": 4096,
            # Written out: loaded with another default theta, the model would answer worse.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": sizes.rotary_sections,
            },
            "bos_token_id": None,
            "eos_token_id": token_id(END_OF_TURN),
            "pad_token_id": token_id(PADDING),
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": sizes.width,
            "fullatt_block_indexes": [0, 1, 2],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(processor: Qwen2_5_VLProcessor, sizes: Architecture, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random weights drawn from `seed`; greedy decoding by default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(build_config(processor, sizes))
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=processor.tokenizer.convert_tokens_to_ids(END_OF_TURN),
        pad_token_id=processor.tokenizer.convert_tokens_to_ids(PADDING),
    )
    return model.float()
