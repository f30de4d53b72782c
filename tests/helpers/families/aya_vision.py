"""Aya Vision: within an image's markers every tile has a tile token and its number in ordinary text before its patches;
features come per tile, and the processor does not say how many tiles an image has."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    GotOcr2ImageProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{{ bos_token }}{%- for message in messages -%}<|START_OF_TURN_TOKEN|>{{ message['role'] "
    "| replace('user', '<|USER_TOKEN|>') | replace('assistant', '<|CHATBOT_TOKEN|><|START_RESPONSE|>') "
    "| replace('system', '<|SYSTEM_TOKEN|>') }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for item in message['content'] | selectattr('type', 'equalto', 'image') -%}<image>{%- endfor -%}"
    "{%- for item in message['content'] | selectattr('type', 'equalto', 'text') -%}{{ item['text'] }}{%- endfor -%}"
    "{%- endif -%}{%- if message['role'] == 'assistant' -%}<|END_RESPONSE|>{%- endif -%}<|END_OF_TURN_TOKEN|>"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>"
    "{%- endif -%}"
)
SPECIAL = (
    "<PAD>",
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<image>",
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_LINE_BREAK|>",
    "<|IMG_PATCH|>",
    "TILE",
    "TILE_GLOBAL",
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(
        SPECIAL, template=TEMPLATE, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", add_bos=True
    )
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessor(
            size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        patch_size=14,
        img_size=28,
        chat_template=TEMPLATE,
    )
    config = AyaVisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 28,
            "patch_size": 7,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "cohere2",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "sliding_window": 512,
            "logit_scale": 0.25,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        alignment_intermediate_size=128,
        tie_word_embeddings=False,
    )
    return save_tiny(folder, AyaVisionForConditionalGeneration, config, processor)


FAMILY = Family(
    "aya_vision",
    "CohereLabs/aya-vision-8b, CohereLabs/aya-vision-32b",
    build,
    sizes=((24, 48), (48, 24), (24, 24), (80, 28)),
    opens="<|START_OF_IMG|>",
    closes="<|END_OF_IMG|>",
    differs="ordinary text inside an image; three of four layers slide",
)
