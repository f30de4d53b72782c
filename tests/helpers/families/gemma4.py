"""Gemma 4 (the small kind): later layers reuse the keys and values of earlier ones; full layers have wider heads.

With `logits_to_keep=1` the reusing layers see the last query only. An image takes at most 70 tokens here, the smallest
budget that the image processor allows, and fewer by its shape.
"""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
)

from .common import Family, metaspace_tokenizer, save_tiny

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}{{ '<|turn>' + role + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] | trim }}"
    "{% elif item['type'] == 'image' %}{{ '<|image|>' }}{% elif item['type'] == 'audio' %}{{ '<|audio|>' }}"
    "{% elif item['type'] == 'video' %}{{ '<|video|>' }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)
NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
SPECIAL = ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", *NAMED.values(), "<|video|>")


def build(folder: Path) -> Path:
    tokenizer = metaspace_tokenizer(
        SPECIAL, template=TEMPLATE, bos="<bos>", eos="<eos>", pad="<pad>", named=NAMED, add_bos=True
    )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    patches = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    processor = Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(**patches),
        chat_template=TEMPLATE,
        image_seq_length=70,
    )
    config = Gemma4Config(
        text_config={
            "vocab_size": len(tokenizer),
            "vocab_size_per_layer_input": len(tokenizer),
            "hidden_size_per_layer_input": 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 512,
            "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
            "final_logit_softcapping": 30.0,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "proportional",
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1_000_000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "tie_word_embeddings": False,
            **ids,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 160,
        },
        audio_config=None,
        **{
            f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items() if name != "eoa_token"
        },
        eoa_token_index=tokenizer.convert_tokens_to_ids("<audio|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        tie_word_embeddings=False,
        **ids,
    )
    return save_tiny(folder, Gemma4ForConditionalGeneration, config, processor)


FAMILY = Family(
    "gemma4",
    "google/gemma-4-E2B-it, google/gemma-4-E4B-it",
    build,
    sizes=((60, 90), (160, 20), (56, 56), (120, 40)),
    opens="<|image>",
    closes="<image|>",
    differs="sliding and full layers; later layers reuse keys and values of earlier ones",
)
