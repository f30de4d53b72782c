"""Gemma 3n: later layers reuse the keys and values of earlier ones; a fixed number of tokens per image, causal ones.

The vision tower is a convolutional network of the package timm.
"""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    SiglipImageProcessor,
)

from .common import Family, metaspace_tokenizer, save_tiny

TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% if messages[0]['content'] is string %}{% set prefix = messages[0]['content'] + '\n\n' %}"
    "{% else %}{% set prefix = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set prefix = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'audio' %}{{ '<audio_soft_token>' }}"
    "{% elif item['type'] == 'image' %}{{ '<image_soft_token>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
NAMED = {
    "boi_token": "<start_of_image>",
    "boa_token": "<start_of_audio>",
    # These have embeddings of their own, beyond the text's vocabulary.
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    "eoa_token": "<end_of_audio>",
    "audio_token": "<audio_soft_token>",
}
SPECIAL = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *NAMED.values())


def build(folder: Path) -> Path:
    tokenizer = metaspace_tokenizer(
        SPECIAL, template=TEMPLATE, bos="<bos>", eos="<eos>", pad="<pad>", named=NAMED, add_bos=True
    )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    processor = Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(),
        image_processor=SiglipImageProcessor(size={"height": 64, "width": 64}, do_normalize=False),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        image_seq_length=4,
    )
    config = Gemma3nConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "vocab_size_per_layer_input": tokenizer.eoi_token_id,
            "hidden_size_per_layer_input": 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "laurel_rank": 8,
            "sliding_window": 512,
            "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "tie_word_embeddings": False,
            **ids,
        },
        vision_config={
            "architecture": "test_efficientnet_gn",
            "hidden_size": 256,
            "vocab_size": 2,
            "vocab_offset": tokenizer.eoi_token_id,
        },
        audio_config={
            "hidden_size": 32,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": [8, 4],
            "vocab_size": 2,
            "vocab_offset": tokenizer.eoa_token_id,
        },
        vision_soft_tokens_per_image=4,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items()},
        tie_word_embeddings=False,
        **ids,
    )
    return save_tiny(folder, Gemma3nForConditionalGeneration, config, processor)


FAMILY = Family(
    "gemma3n",
    "google/gemma-3n-E2B-it, google/gemma-3n-E4B-it",
    build,
    opens="<start_of_image>",
    closes="<end_of_image>",
    one_length=True,
    differs="sliding and full layers; later layers reuse keys and values of earlier ones",
)
