"""MiniCPM-V 4.6: an image is its number, an overview and, if large, rows of slices, each its own run of placeholders
between delimiters; one feature block per run. The decoder is Qwen3.5's, with attention in every fourth layer."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny
from .qwen3_5 import hybrid_text_config, settle

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image_url' in content %}{{ '<|image_pad|>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<|video_pad|>\n' }}"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking %}{{ '<think>\n' }}"
    "{% else %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values(), "<think>", "</think>")


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(SPECIAL, template=TEMPLATE, eos="<|im_end|>", pad="<|endoftext|>", named=NAMED)
    # At 28 x 28 pixels a token, about four tokens a slice.
    slicing = {"scale_resolution": 56, "patch_size": 7, "max_slice_nums": 4}
    processor = MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(**slicing),
        video_processor=MiniCPMV4_6VideoProcessor(**slicing),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    config = MiniCPMV4_6Config(
        text_config={"model_type": "qwen3_5_text", **hybrid_text_config(tokenizer)},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 7,
        },
        insert_layer_id=0,
        image_size=56,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        tie_word_embeddings=False,
    )
    save_tiny(folder, MiniCPMV4_6ForConditionalGeneration, config, processor)
    return settle(folder, MiniCPMV4_6ForConditionalGeneration)


FAMILY = Family(
    "minicpmv4_6",
    "openbmb/MiniCPM-V-4.6",
    build,
    sizes=((60, 90), (90, 90), (50, 50), (120, 60)),
    opens="<image_id>",
    closes=("</image>", "</slice>"),
    differs="numbered images in slices, attention in every fourth layer",
)
