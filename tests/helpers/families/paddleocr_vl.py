"""PaddleOCR-VL: ERNIE's tokens around one run of placeholders per image; a turn's images stand before its words,
wherever they were given; 3-D rotary positions that depend on the images' grids."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    PaddleOCRVLImageProcessor,
    PaddleOCRVLProcessor,
)

from .common import Family, metaspace_tokenizer, save_tiny

TEMPLATE = (
    "{{ '<|begin_of_sentence|>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' }}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}{% endif %}"
    "{% endfor %}{% elif message['role'] == 'assistant' %}{{ 'Assistant:\n' }}{% endif %}"
    "{% for content in message['content'] %}{% if content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{{ '</s>' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
SPECIAL = (
    "<s>",
    "</s>",
    "<|begin_of_sentence|>",
    "<|end_of_sentence|>",
    "<|IMAGE_PLACEHOLDER|>",
    "<|video_pad|>",
    "<|IMAGE_START|>",
    "<|IMAGE_END|>",
)


def build(folder: Path) -> Path:
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    tokenizer = metaspace_tokenizer(SPECIAL, template=TEMPLATE, bos="<s>", eos="</s>", pad="<unk>", named=named)
    tokenizer.cls_token, tokenizer.sep_token = "<|begin_of_sentence|>", "<|end_of_sentence|>"
    # At 28 x 28 pixels a token, an image gets 2 to 12 tokens.
    size = {"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
    processor = PaddleOCRVLProcessor(
        image_processor=PaddleOCRVLImageProcessor(size=size), tokenizer=tokenizer, chat_template=TEMPLATE
    )
    config = PaddleOCRVLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            # Channel pairs for time, height and width, as in the family's 16 + 24 + 24.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
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
            "image_size": 56,
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|IMAGE_START|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|IMAGE_END|>"),
        tie_word_embeddings=False,
    )
    return save_tiny(folder, PaddleOCRVLForConditionalGeneration, config, processor)


FAMILY = Family(
    "paddleocr_vl",
    "PaddlePaddle/PaddleOCR-VL",
    build,
    sizes=((60, 90), (90, 90), (56, 56), (120, 30)),
    opens="<|IMAGE_START|>",
    closes="<|IMAGE_END|>",
    differs="images before the turn's words, 3-D positions",
)
