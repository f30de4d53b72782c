"""EXAONE 4.5: Qwen's vision tower before a decoder of sliding layers with and full layers without positions."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Exaone4_5_Config,
    Exaone4_5_ForConditionalGeneration,
    Exaone4_5_Processor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<vision><|image_pad|></vision>' }}"
    "{% elif content['type'] == 'video' %}{{ '<vision><|video_pad|></vision>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|endofturn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPECIAL = (
    "[BOS]",
    "[EOS]",
    "[PAD]",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|endofturn|>",
    "<vision>",
    "</vision>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(
        SPECIAL,
        template=TEMPLATE,
        bos="[BOS]",
        eos="<|endofturn|>",
        pad="[PAD]",
        named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    pixels = {"min_pixels": 28 * 28, "max_pixels": 9 * 28 * 28}
    processor = Exaone4_5_Processor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=TEMPLATE,
    )
    config = Exaone4_5_Config(
        text_config={
            "model_type": "exaone4",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 512,
            "sliding_window_pattern": 4,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": False,
            **ids,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "num_key_value_heads": 1,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<vision>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("</vision>"),
        tie_word_embeddings=False,
        **ids,
    )
    return save_tiny(folder, Exaone4_5_ForConditionalGeneration, config, processor)


FAMILY = Family(
    "exaone4_5",
    "LGAI-EXAONE/EXAONE-4.5-33B",
    build,
    opens="<vision>",
    closes="</vision>",
    differs="sliding layers with and full layers without positions",
)
