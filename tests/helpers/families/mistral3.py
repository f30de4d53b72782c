"""Mistral 3 (Pixtral processor): an image is rows of [IMG], [IMG_BREAK] between rows and [IMG_END] in place of the last
break; only [IMG] carries a feature, so an image's span is longer than its features."""

from __future__ import annotations

from pathlib import Path

from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor, PixtralProcessor

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "{{ '[SYSTEM_PROMPT]You are a helpful assistant.[/SYSTEM_PROMPT]' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'text' %}{{ block['text'] }}"
    "{% elif block['type'] in ['image', 'image_url'] %}{{ '[IMG]' }}{% endif %}{% endfor %}{% endif %}{{ '[/INST]' }}"
    "{% else %}{% set text = message['content'] if message['content'] is string else message['content'][0]['text'] %}"
    "{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ text + eos_token }}{% endif %}{% endif %}{% endfor %}"
)
SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(SPECIAL, template=TEMPLATE, bos="<s>", eos="</s>", pad="<pad>", add_bos=True)
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7}),
        tokenizer=tokenizer,
        patch_size=7,
        spatial_merge_size=2,
        chat_template=TEMPLATE,
    )
    config = Mistral3Config(
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 56,
            "patch_size": 7,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
        },
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            # As in the published models, the heads together are narrower than the hidden states.
            "head_dim": 12,
            "max_position_embeddings": 4096,
            "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000000.0},
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return save_tiny(folder, Mistral3ForConditionalGeneration, config, processor)


FAMILY = Family(
    "mistral3",
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    build,
    closes="[IMG_END]",
    differs="row breaks inside an image",
)
