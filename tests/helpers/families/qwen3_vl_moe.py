"""Qwen3-VL-MoE: Qwen3-VL's images, processor and deepstack over a mixture-of-experts decoder."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from .common import Family, save_tiny
from .qwen3_vl import TEMPLATE, qwen3_processor, sharpen, text_config, token_ids, vision_config


def build(folder: Path) -> Path:
    processor = qwen3_processor(TEMPLATE)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    config = Qwen3VLMoeConfig(
        text_config={**text_config(processor.tokenizer), **experts},
        vision_config=vision_config(deepstack_visual_indexes=[0, 1]),
        tie_word_embeddings=False,
        **token_ids(processor.tokenizer),
    )
    save_tiny(folder, Qwen3VLMoeForConditionalGeneration, config, processor)
    return sharpen(folder, Qwen3VLMoeForConditionalGeneration)


FAMILY = Family(
    "qwen3_vl_moe",
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
    build,
    sizes=((60, 90), (96, 96), (56, 56), (130, 40)),
    opens="<|vision_start|>",
    closes="<|vision_end|>",
    differs="Qwen3-VL with experts",
)
