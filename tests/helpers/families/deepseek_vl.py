"""DeepSeek-VL: a fixed number of tokens per image; the template strips the text after the images.

Published tokenizers put the begin-of-sentence token before the text, which `sanitize_control_tokens` does not allow;
here the template writes it, for the same tokens.
"""

from __future__ import annotations

from pathlib import Path

from transformers import (
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
TEMPLATE = (
    "{{ bos_token }}You are a helpful language and vision assistant.\n\n"
    "{% for message in messages %}{% if message['role'] == 'user' %}User: "
    "{% elif message['role'] == 'assistant' %}Assistant: {% else %}{{ message['role'].capitalize() }}: {% endif %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image_placeholder>"
    "{% elif content['type'] == 'text' %}{% set text = content['text'] %}"
    "{% if loop.first %}{% set text = text.lstrip() %}{% endif %}"
    "{% if loop.last %}{% set text = text.rstrip() %}{% endif %}"
    "{% if not loop.first and message['content'][loop.index0 - 1]['type'] == 'text' %}{{ ' ' + text }}"
    "{% else %}{{ text }}{% endif %}{% endif %}{% endfor %}"
    "{% if not loop.last or add_generation_prompt %}"
    "{% if message['role'] == 'user' %}{{ '\n\n' }}{% else %}{{ eos_token }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(
        (BOS, EOS, "<image_placeholder>"),
        template=TEMPLATE,
        bos=BOS,
        eos=EOS,
        pad=EOS,
        named={"image_token": "<image_placeholder>"},
    )
    processor = DeepseekVLProcessor(
        image_processor=DeepseekVLImageProcessor(size={"height": 24, "width": 24}, min_size=8),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        num_image_tokens=9,
    )
    config = DeepseekVLConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 24,
            "patch_size": 8,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return save_tiny(folder, DeepseekVLForConditionalGeneration, config, processor)


FAMILY = Family(
    "deepseek_vl",
    "deepseek-community/deepseek-vl-1.3b-chat",
    build,
    one_length=True,
    differs="fixed number of tokens; the template strips the text",
)
