"""Ovis2: atoms of all tiles, with indicator tokens between them; the indicators too get their embeddings from the
vision side, so that the features of the tiles alone are not enough to replace the pixels."""

from __future__ import annotations

from pathlib import Path

from transformers import Ovis2Config, Ovis2ForConditionalGeneration, Ovis2ImageProcessor, Ovis2Processor

from .common import Family, byte_level_tokenizer, save_tiny

TEMPLATE = (
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INDICATORS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
# As published, <image> stands in the prompt's text only and is no token.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_ATOM>", *INDICATORS)


def build(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer(SPECIAL, template=TEMPLATE, eos="<|im_end|>", pad="<|endoftext|>")
    processor = Ovis2Processor(
        image_processor=Ovis2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        image_seq_length=4,
    )
    config = Ovis2Config(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
            "hidden_stride": 2,
            "vocab_size": 128,
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
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(INDICATORS)),
        vocab_size=len(tokenizer),
        hidden_size=64,
        tie_word_embeddings=False,
    )
    return save_tiny(folder, Ovis2ForConditionalGeneration, config, processor)


FAMILY = Family(
    "ovis2",
    "thisisiron/Ovis2-2B-hf, thisisiron/Ovis2-8B-hf",
    build,
    sizes=((30, 60), (60, 30), (30, 30), (90, 30)),
    opens="<IMG_START>",
    closes="<IMG_END>",
    differs="tiles and learnt tile marks inside one image; the placeholder is no token",
)
