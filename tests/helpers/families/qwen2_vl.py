"""Qwen2-VL: one run of pads per image, a default system turn, 3-D rotary positions that depend on the images' grids."""

from __future__ import annotations

from pathlib import Path

from tiny_vlm import CHAT_TEMPLATE
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from .common import Family, save_tiny
from .qwen3_vl import qwen_tokenizer, token_ids


def build(folder: Path) -> Path:
    tokenizer = qwen_tokenizer(CHAT_TEMPLATE)
    size = {"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
    vision = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "max_window_layers": 4,
            # Channel pairs for time, height and width, as in Qwen's 16 + 24 + 24.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        tie_word_embeddings=False,
        **token_ids(tokenizer),
    )
    return save_tiny(folder, Qwen2VLForConditionalGeneration, config, processor)


FAMILY = Family(
    "qwen2_vl",
    "Qwen/Qwen2-VL-2B-Instruct, Qwen/Qwen2-VL-7B-Instruct",
    build,
    sizes=((60, 90), (90, 90), (56, 56), (120, 30)),
    opens="<|vision_start|>",
    closes="<|vision_end|>",
    differs="3-D positions",
)
