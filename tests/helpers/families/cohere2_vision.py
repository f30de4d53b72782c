"""Cohere2 Vision: an image's tiles are runs of patch tokens, each with a line break after it, inside one pair of image
markers; features come per tile, and the processor does not say how many tiles an image has."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># System Preamble\n<|END_OF_TURN_TOKEN|>' }}{% endif %}"
    "{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}{% if message['role'] == 'user' %}"
    "{{ '<|USER_TOKEN|>' }}{% elif message['role'] == 'system' %}{{ '<|SYSTEM_TOKEN|>' }}"
    "{% else %}{{ '<|CHATBOT_TOKEN|>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<|IMG_PATCH|>' }}{% elif item['type'] == 'text' %}{{ item['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
IMAGE = {
    "image_token": "<|IMG_PATCH|>",
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}
SPECIAL = (
    "<PAD>",
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    *IMAGE.values(),
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(
        SPECIAL,
        template=TEMPLATE,
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        named=IMAGE,
        add_bos=True,
    )
    processor = Cohere2VisionProcessor(
        # Here, patch_size counts the tokens along one side of a tile.
        image_processor=Cohere2VisionImageProcessor(size={"height": 28, "width": 28}, max_patches=4, patch_size=2),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    config = Cohere2VisionConfig(
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
        image_token_id=tokenizer.image_token_id,
        downsample_factor=2,
        alignment_intermediate_size=128,
        tie_word_embeddings=False,
    )
    return save_tiny(folder, Cohere2VisionForConditionalGeneration, config, processor)


FAMILY = Family(
    "cohere2_vision",
    "CohereLabs/command-a-vision-07-2025",
    build,
    sizes=((24, 48), (48, 24), (24, 24), (80, 28)),
    opens="<|START_OF_IMG|>",
    closes="<|END_OF_IMG|>",
    differs="tiles inside one image; three of four layers slide and only these have positions",
)
