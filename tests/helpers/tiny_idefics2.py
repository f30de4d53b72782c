"""Idefics2: an image is four crops and the whole, a run of tokens each; neighbouring runs share one boundary token.

Features come in one block per prompt, and the processor does not say where it wrote an image.
"""

from __future__ import annotations

from pathlib import Path

from families.common import Family, metaspace_tokenizer, save_tiny
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessor,
    Idefics2Processor,
)

TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SPECIAL = ("<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>")


def build(folder: Path) -> Path:
    tokenizer = metaspace_tokenizer(SPECIAL, template=TEMPLATE, bos="<s>", eos="</s>", pad="<unk>", add_bos=True)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    processor = Idefics2Processor(
        image_processor=Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=True),
        tokenizer=tokenizer,
        image_seq_len=2,
        chat_template=TEMPLATE,
    )
    config = Idefics2Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 512,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": False,
            **ids,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 7,
        },
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 2,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
        },
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return save_tiny(folder, Idefics2ForConditionalGeneration, config, processor)


FAMILY = Family(
    "idefics2",
    "HuggingFaceM4/idefics2-8b",
    build,
    differs="a run of tokens per crop; neighbouring images share a boundary token; features in one block per prompt",
)
