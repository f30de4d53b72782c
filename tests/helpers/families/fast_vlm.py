"""FastVLM: a convolutional tower of timm, every image cropped to a square of a fixed number of tokens; the template
puts all images before the text."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPImageProcessor, FastVlmConfig, FastVlmForConditionalGeneration, LlavaProcessor

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(SPECIAL, template=TEMPLATE, eos="<|im_end|>", pad="<|endoftext|>")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 128},
            crop_size={"height": 128, "width": 128},
            image_mean=[0.0, 0.0, 0.0],
            image_std=[1.0, 1.0, 1.0],
        ),
        tokenizer=tokenizer,
        patch_size=64,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )
    config = FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "hidden_size": 64,
            "model_args": {"inference_mode": True, "layers": [1, 1, 1, 1, 1], "embed_dims": [8, 8, 16, 32, 32]},
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    save_tiny(folder, FastVlmForConditionalGeneration, config, processor)
    # Convolutions see few inputs each; so narrow, nothing of an image would reach the end of the tower.
    model = FastVlmForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.model.vision_tower.parameters():
            if weight.dim() == 4:
                weight *= 2.0 / (weight.std() * weight[0].numel() ** 0.5)
    model.save_pretrained(folder)
    return folder


FAMILY = Family(
    "fast_vlm",
    "KamilaMila/FastVLM-0.5B, KamilaMila/FastVLM-7B",
    build,
    one_length=True,
    differs="fixed number of tokens; images before text",
)
