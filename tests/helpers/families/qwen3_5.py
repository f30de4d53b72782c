"""Qwen3.5: three gated delta-net layers to one of attention, so that only every fourth layer has an attention map;
images as in Qwen3-VL, without deepstack; the prompt ends inside a thinking block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from .common import Family, save_tiny
from .qwen3_vl import SPECIAL, qwen3_processor, text_config, token_ids, vision_config
from .qwen3_vl import TEMPLATE as QWEN3_VL_TEMPLATE

# Thinking is on unless the template is told otherwise; the last answer stands behind an empty block.
TEMPLATE = QWEN3_VL_TEMPLATE.replace(
    "{{ '<|im_start|>assistant\n' }}",
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}",
).replace(
    "{{ '<|im_start|>' + message['role'] + '\n' }}",
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
)
THINKING_SPECIAL = (*SPECIAL, "<think>", "</think>")


def hybrid_text_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return text_config(tokenizer) | {
        "num_hidden_layers": 6,
        "layer_types": [*["linear_attention"] * 3, "full_attention", "linear_attention", "full_attention"],
        "head_dim": 32,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        # A quarter of each head's channels turns, as in Qwen's 11 + 11 + 10 pairs of 128.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }


def settle(folder: Path, model_class: type[PreTrainedModel]) -> Path:
    """Norms count from one here, so their weights belong near zero; slow decay lets the recurrence reach the images."""
    model = model_class.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.sub_(3)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.sub_(0.4)
            elif "language_model." in name and name.endswith(("layernorm.weight", "language_model.norm.weight")):
                parameter.sub_(1)
    model.save_pretrained(folder)
    return folder


def build(folder: Path) -> Path:
    processor = qwen3_processor(TEMPLATE, THINKING_SPECIAL)
    config = Qwen3_5Config(
        text_config=hybrid_text_config(processor.tokenizer),
        vision_config=vision_config(),
        tie_word_embeddings=False,
        **token_ids(processor.tokenizer),
    )
    save_tiny(folder, Qwen3_5ForConditionalGeneration, config, processor)
    return settle(folder, Qwen3_5ForConditionalGeneration)


FAMILY = Family(
    "qwen3_5",
    "Qwen/Qwen3.5-9B, Qwen/Qwen3.5-27B",
    build,
    sizes=((60, 90), (96, 96), (56, 56), (130, 40)),
    opens="<|vision_start|>",
    closes="<|vision_end|>",
    differs="attention in every fourth layer, 3-D positions",
)
