"""ERNIE-4.5-VL: "Picture 1:" stands before each image; besides the placeholders, the tokens that open and close an
image go to experts of their own, by a second row of token types."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
)

from .common import Family, metaspace_tokenizer, save_tiny

TEMPLATE = (
    "{% set count = namespace(value=0) %}{{ '<|begin_of_sentence|>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ '\nAssistant: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{{ content['text'] }}{% elif content['type'] in ['image', 'image_url'] %}"
    "{% set count.value = count.value + 1 %}"
    "{{ 'Picture ' ~ count.value ~ ':<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}"
    "{% endif %}{% endfor %}{% endif %}{% if message['role'] == 'system' %}{{ '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|end_of_sentence|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAssistant: ' }}"
    "{% if enable_thinking is defined and enable_thinking %}{{ '<think>' }}"
    "{% else %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
NAMED = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
SPECIAL = ("<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>", *NAMED.values(), "<think>", "</think>")


def build(folder: Path) -> Path:
    tokenizer = metaspace_tokenizer(SPECIAL, template=TEMPLATE, bos="<s>", eos="</s>", pad="<unk>", named=NAMED)
    tokenizer.cls_token, tokenizer.sep_token = "<|begin_of_sentence|>", "<|end_of_sentence|>"
    # At 28 x 28 pixels a token, an image gets 2 to 12 tokens.
    size = {"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
    processor = Ernie4_5_VLMoeProcessor(
        image_processor=Ernie4_5_VLMoeImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Ernie4_5_VLMoeVideoProcessor(size=size, draw_on_frames=False),
        chat_template=TEMPLATE,
    )
    config = Ernie4_5_VLMoeConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "moe_intermediate_size": [32, 16],
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 2,
            # Channel pairs for height, width and time, as in ERNIE's 22 + 22 + 20.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
        },
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64},
        tie_word_embeddings=False,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items()},
    )
    return save_tiny(folder, Ernie4_5_VLMoeForConditionalGeneration, config, processor)


FAMILY = Family(
    "ernie4_5_vl_moe",
    "baidu/ERNIE-4.5-VL-28B-A3B-PT",
    build,
    sizes=((60, 90), (90, 90), (56, 56), (120, 30)),
    opens="<|IMAGE_START|>",
    closes="<|IMAGE_END|>",
    differs='"Picture 1:" before each image, experts of its own for vision, 3-D positions',
)
