"""VideoLLaMA3: no tokens open or close an image, a newline ends it; one token per patch, and the features come with a
merge size for each image."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from .common import Family, save_tiny
from .qwen3_vl import qwen_tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|image_pad|>\n' }}{% elif content['type'] == 'video' %}"
    "{{ '<|video_pad|>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build(folder: Path) -> Path:
    tokenizer = qwen_tokenizer(TEMPLATE)
    # At 14 x 14 pixels a token, scaled down to at most 16 tokens.
    size = {"shortest_edge": 4 * 14**2, "longest_edge": 16 * 14**2}
    processor = VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=VideoLlama3VideoProcessor(size=size),
        chat_template=TEMPLATE,
    )
    config = VideoLlama3Config(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 14,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        tie_word_embeddings=False,
    )
    return save_tiny(folder, VideoLlama3ForConditionalGeneration, config, processor)


FAMILY = Family(
    "video_llama_3",
    "lkhl/VideoLLaMA3-2B-Image-HF",
    build,
    sizes=((40, 60), (56, 56), (30, 30), (90, 30)),
    differs="no delimiters around an image",
)
