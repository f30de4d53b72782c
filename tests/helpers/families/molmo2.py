"""Molmo 2: all images stand before the first turn, each as two runs of patch tokens with column tokens in between.

Image tokens of all images see each other in both directions, features are added to the placeholders' embeddings, and
the image tokens' ids lie beyond the output vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{% set images = namespace(count=0) %}{% for message in messages %}{% if message['content'] is not string %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{% set images.count = images.count + 1 %}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if images.count == 1 %}{{ '<|image|>' }}{% else %}{% for i in range(images.count) %}"
    "{{ 'Image ' ~ (i + 1) ~ '<|image|>' }}{% endfor %}{% endif %}"
    "{% for message in messages %}{% set turn = namespace(text='') %}{% if message['content'] is string %}"
    "{% set turn.text = message['content'] %}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{% set turn.text = turn.text ~ (' ' if turn.text else '') ~ content['text'] %}"
    "{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' and not loop.first %}{{ '<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + turn.text }}"
    "{% if message['role'] == 'user' %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IMAGE_SPECIAL = (
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<im_col>",
    "<low_res_im_start>",
    "<|image|>",
    "<im_low>",
    "<frame_start>",
    "<frame_end>",
    "<|video|>",
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(
        SPECIAL + IMAGE_SPECIAL, template=TEMPLATE, bos="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>"
    )
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in IMAGE_SPECIAL}
    turn_ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    size = {"height": 28, "width": 28}
    processor = Molmo2Processor(
        image_processor=Molmo2ImageProcessor(size=size, patch_size=7, overlap_margins=[1, 1], max_crops=4),
        video_processor=Molmo2VideoProcessor(size=size, patch_size=7),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    vision = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Molmo2Config(
        text_config={
            "vocab_size": len(tokenizer) - len(IMAGE_SPECIAL),
            "additional_vocab_size": len(IMAGE_SPECIAL),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            **turn_ids,
        },
        vision_config={
            **vision,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "image_size": [28, 28],
            "patch_size": 7,
        },
        adapter_config={**vision, "intermediate_size": 64, "text_hidden_size": 64, "vision_feature_layer": [1, 0]},
        image_start_token_id=ids["<im_start>"],
        low_res_image_start_token_id=ids["<low_res_im_start>"],
        image_end_token_id=ids["<im_end>"],
        image_patch_id=ids["<im_patch>"],
        frame_start_token_id=ids["<frame_start>"],
        frame_end_token_id=ids["<frame_end>"],
        **turn_ids,
    )
    return save_tiny(folder, Molmo2ForConditionalGeneration, config, processor)


FAMILY = Family(
    "molmo2",
    "allenai/Molmo2-8B, allenai/Molmo2-4B",
    build,
    sizes=((60, 90), (90, 30), (28, 28), (120, 40)),
    opens="<low_res_im_start>",
    closes="<im_end>",
    differs="all images first, numbered; image tokens of all images see each other in both directions",
)
