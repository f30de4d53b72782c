"""HunYuan-VL: a turn's token stands behind its words; the run of an image holds begin, end and row ends as features of
its own; rotary positions have an axis that counts the images."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    HunYuanVLConfig,
    HunYuanVLForConditionalGeneration,
    HunYuanVLImageProcessor,
    HunYuanVLProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny
from .qwen3_vl import sharpen

BOS, USER, ASSISTANT = "<｜hy_begin▁of▁sentence｜>", "<｜hy_User｜>", "<｜hy_Assistant｜>"
PAD, SYSTEM_END, NEWLINE = "<｜hy_▁pad▁｜>", "<｜hy_place▁holder▁no▁3｜>", "<｜hy_place▁holder▁no▁103｜>"
NAMED = {
    "image_start_token": "<｜hy_place▁holder▁no▁100｜>",
    "image_end_token": "<｜hy_place▁holder▁no▁101｜>",
    "image_token": "<｜hy_place▁holder▁no▁102｜>",
}
IMAGE = NAMED["image_start_token"] + NAMED["image_token"] + NAMED["image_end_token"]
SPECIAL = (BOS, USER, ASSISTANT, PAD, SYSTEM_END, *NAMED.values(), NEWLINE)
TEMPLATE = (
    f"{BOS}{{% for message in messages %}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    f"{{% if content['type'] == 'image' %}}{IMAGE}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    f"{{% if message['role'] == 'system' %}}{SYSTEM_END}{{% elif message['role'] == 'user' %}}{USER}"
    f"{{% else %}}{ASSISTANT}{{% endif %}}{{% endfor %}}"
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(SPECIAL, template=TEMPLATE, bos=BOS, eos=ASSISTANT, pad=PAD, named=NAMED)
    # At 32 x 32 pixels a token, and one more for every row.
    size = {"shortest_edge": 2 * 32**2, "longest_edge": 9 * 32**2}
    processor = HunYuanVLProcessor(
        image_processor=HunYuanVLImageProcessor(size=size), tokenizer=tokenizer, chat_template=TEMPLATE
    )
    config = HunYuanVLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            # Sequence, width, height and number of the image share the channel pairs evenly.
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 1000.0,
                "factor": 1.0,
                "mrope_section": [2, 2, 2, 2],
            },
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "out_hidden_size": 64,
            "max_image_size": 64,
            "min_image_size": 32,
        },
        image_token_id=tokenizer.image_token_id,
        im_start_id=tokenizer.image_start_token_id,
        im_end_id=tokenizer.image_end_token_id,
        im_newline_id=tokenizer.convert_tokens_to_ids(NEWLINE),
        tie_word_embeddings=False,
    )
    save_tiny(folder, HunYuanVLForConditionalGeneration, config, processor)
    ends = ("query_layernorm.weight", "key_layernorm.weight")
    return sharpen(folder, HunYuanVLForConditionalGeneration, ends)


FAMILY = Family(
    "hunyuan_vl",
    "tencent/HunyuanOCR",
    build,
    sizes=((60, 90), (96, 96), (64, 64), (130, 40)),
    opens="<｜hy_place▁holder▁no▁100｜>",
    closes="<｜hy_place▁holder▁no▁101｜>",
    differs="positions count the images, row ends among an image's tokens",
)
