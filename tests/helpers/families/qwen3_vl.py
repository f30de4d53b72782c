"""Qwen3-VL: one run of pads per image; besides its rows, an image brings deepstack features for the first decoder
layers, and interleaved 3-D rotary positions that depend on its grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif content['type'] == 'video' or 'video' in content %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def qwen_tokenizer(template: str, special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(special, template=template, eos="<|im_end|>", pad="<|endoftext|>")


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The placeholder ids as every Qwen config names them."""
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def qwen3_processor(template: str, special: Sequence[str] = SPECIAL) -> Qwen3VLProcessor:
    """At 32 x 32 pixels a token, an image gets 2 to 12 tokens."""
    vision = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    vision["size"] = {"shortest_edge": 2 * 32**2, "longest_edge": 12 * 32**2}
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision, **mean),
        tokenizer=qwen_tokenizer(template, special),
        video_processor=Qwen3VLVideoProcessor(**vision, **mean),
        chat_template=template,
    )


def text_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        # As in Qwen's 24 + 20 + 20: every third channel pair is height's, every third width's, the rest time's.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


def vision_config(**more: Any) -> dict[str, Any]:
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    return {**sizes, "num_position_embeddings": 16, **more}


def sharpen(
    folder: Path,
    model_class: type[PreTrainedModel],
    ends: tuple[str, ...] = ("q_norm.weight", "k_norm.weight"),
    factor: float = 1.6,
) -> Path:
    """Widen what makes queries and keys: behind norms near one, a random model's attention is almost uniform."""
    model = model_class.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(ends):
                parameter.mul_(factor)
    model.save_pretrained(folder)
    return folder


def build(folder: Path) -> Path:
    processor = qwen3_processor(TEMPLATE)
    config = Qwen3VLConfig(
        text_config=text_config(processor.tokenizer),
        vision_config=vision_config(deepstack_visual_indexes=[0, 1]),
        tie_word_embeddings=False,
        **token_ids(processor.tokenizer),
    )
    save_tiny(folder, Qwen3VLForConditionalGeneration, config, processor)
    return sharpen(folder, Qwen3VLForConditionalGeneration)


FAMILY = Family(
    "qwen3_vl",
    "Qwen/Qwen3-VL-2B-Instruct, Qwen/Qwen3-VL-8B-Instruct",
    build,
    sizes=((60, 90), (96, 96), (56, 56), (130, 40)),
    opens="<|vision_start|>",
    closes="<|vision_end|>",
    differs="deepstack features and 3-D positions",
)
