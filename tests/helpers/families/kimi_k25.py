"""Kimi K2.5: words stand between the token that opens an image and its placeholders; multi-head latent attention over
a mixture of experts, plain 1-D positions; the prompt ends inside a thinking block."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Kimi_K25Config,
    Kimi_K25ForConditionalGeneration,
    Kimi_K25ImageProcessor,
    Kimi_K25Processor,
    Kimi_K25VideoProcessor,
)

from .common import Family, byte_level_tokenizer, save_tiny
from .qwen3_vl import sharpen

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|im_user|>user<|im_middle|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|im_assistant|>assistant<|im_middle|><think></think>' }}"
    "{% else %}{{ '<|im_system|>' + message['role'] + '<|im_middle|>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] in ['image', 'image_url'] %}"
    "{{ '<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<|kimi_k25_video_placeholder|>\n' }}"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}"
    "{{ '<think></think>' if thinking is defined and not thinking else '<think>' }}{% endif %}"
)
SPECIAL = (
    "[BOS]",
    "[EOS]",
    "<|im_end|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_system|>",
    "<|im_middle|>",
    "<|media_begin|>",
    "<|media_content|>",
    "<|media_end|>",
    "<|media_pad|>",
    "<think>",
    "</think>",
    "[PAD]",
    "<|kimi_k25_video_placeholder|>",
)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(SPECIAL, template=TEMPLATE, bos="[BOS]", eos="<|im_end|>", pad="[PAD]")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    # At 28 x 28 pixels a token, images padded to whole tokens.
    processor = Kimi_K25Processor(
        image_processor=Kimi_K25ImageProcessor(max_patches=48),
        tokenizer=tokenizer,
        video_processor=Kimi_K25VideoProcessor(max_patches=48),
        chat_template=TEMPLATE,
    )
    config = Kimi_K25Config(
        text_config={
            "model_type": "deepseek_v3",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": ids["[BOS]"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["[PAD]"],
            "tie_word_embeddings": False,
        },
        vision_config={
            "pos_emb_height": 4,
            "pos_emb_width": 4,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
        },
        projection_hidden_size=32,
        image_token_id=ids["<|media_pad|>"],
        video_token_id=ids["<|kimi_k25_video_placeholder|>"],
        vision_start_token_id=ids["<|media_begin|>"],
        vision_end_token_id=ids["<|media_end|>"],
        tie_word_embeddings=False,
    )
    save_tiny(folder, Kimi_K25ForConditionalGeneration, config, processor)
    return sharpen(folder, Kimi_K25ForConditionalGeneration, ends=("q_b_proj.weight",), factor=5)


FAMILY = Family(
    "kimi_k25",
    "moonshotai/Kimi-K2.5",
    build,
    sizes=((50, 80), (80, 80), (50, 50), (112, 28)),
    opens="<|media_content|>",
    closes="<|media_end|>",
    differs="latent attention, words inside the image's delimiters",
)
