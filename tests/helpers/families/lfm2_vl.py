"""LFM2-VL: short convolutions in most layers, attention in the others; an image is one run of tokens or a run per tile.

Layers of convolution have no `self_attn`; features come in one block per tile.
"""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<image>' }}{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = (
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    *[f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)],
    "<|img_thumbnail|>",
    "<|image_start|>",
    "<|image_end|>",
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(
        SPECIAL,
        template=TEMPLATE,
        bos="<|startoftext|>",
        eos="<|im_end|>",
        pad="<|pad|>",
        named={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        add_bos=True,
    )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image_processor = Lfm2VlImageProcessor(
        encoder_patch_size=8, downsample_factor=2, tile_size=32, max_tiles=4, min_image_tokens=2, max_image_tokens=8
    )
    processor = Lfm2VlProcessor(image_processor=image_processor, tokenizer=tokenizer, chat_template=TEMPLATE)
    config = Lfm2VlConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"],
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": False,
            **ids,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 8,
            "num_patches": 16,
            "vision_use_head": False,
        },
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=64,
        downsample_factor=2,
        tie_word_embeddings=False,
        **ids,
    )
    return save_tiny(folder, Lfm2VlForConditionalGeneration, config, processor)


FAMILY = Family(
    "lfm2_vl",
    "LiquidAI/LFM2-VL-1.6B, LiquidAI/LFM2-VL-450M",
    build,
    sizes=((60, 90), (48, 32), (96, 32), (120, 40)),
    opens="<|image_start|>",
    closes="<|image_end|>",
    differs="most layers are convolutions and have no attention to read; a run of tokens per tile",
)
