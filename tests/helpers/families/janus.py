"""Janus: a fixed number of tokens per image between two markers; the template puts newlines around images and strips
the text, and the processor, not the template, writes the system prompt.

Published tokenizers put the begin-of-sentence token before the text, which `sanitize_control_tokens` does not allow;
here there is none.
"""

from __future__ import annotations

from pathlib import Path

from transformers import JanusConfig, JanusForConditionalGeneration, JanusImageProcessor, JanusProcessor

from .common import Family, byte_level_tokenizer, save_tiny

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
PAD = "<\uff5c\u2581pad\u2581\uff5c>"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|User|>: "
    "{% elif message['role'] == 'assistant' %}<|Assistant|>: {% else %}{{ message['role'].capitalize() }}: {% endif %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}<image_placeholder>{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% elif content['type'] == 'text' %}{% set text = content['text'] %}"
    "{% if loop.first %}{% set text = text.lstrip() %}{% endif %}"
    "{% if loop.last %}{% set text = text.rstrip() %}{% endif %}"
    "{% if not loop.first and message['content'][loop.index0 - 1]['type'] == 'text' %}{{ ' ' + text }}"
    "{% else %}{{ text }}{% endif %}{% endif %}{% endfor %}"
    "{% if not loop.last or add_generation_prompt %}"
    "{% if message['role'] == 'user' %}{{ '\n\n' }}{% else %}{{ eos_token }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
IMAGE = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(
        (BOS, EOS, PAD, "<|User|>", "<|Assistant|>", *IMAGE.values()),
        template=TEMPLATE,
        bos=BOS,
        eos=EOS,
        pad=PAD,
        named=IMAGE,
    )
    processor = JanusProcessor(
        image_processor=JanusImageProcessor(size={"height": 24, "width": 24}, min_size=8),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        use_default_system_prompt=True,
        num_image_tokens=9,
    )
    config = JanusConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 8,
            "mlp_ratio": 2.0,
            "projection_dim": 64,
            "num_image_tokens": 9,
        },
        vq_config={
            "embed_dim": 4,
            "num_embeddings": 16,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 64,
            "image_token_embed_dim": 64,
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
    return save_tiny(folder, JanusForConditionalGeneration, config, processor)


FAMILY = Family(
    "janus",
    "deepseek-community/Janus-Pro-1B, deepseek-community/Janus-Pro-7B",
    build,
    opens="<begin_of_image>",
    closes="<end_of_image>",
    one_length=True,
    differs="markers around a fixed number of tokens",
)
