"""GLM-4.1V: one run of image tokens between begin and end per image; 3-D rotary positions on half of each head; turns
end where the next role's token stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    PreTrainedTokenizerFast,
)

from .common import Family, byte_level_tokenizer, save_tiny

CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'video' or 'video' in item %}{{ '<|begin_of_video|><|video|><|end_of_video|>' }}"
    "{% elif item['type'] == 'image' or 'image' in item %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
)
TEMPLATE = (
    "{{ '[gMASK]<sop>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}" + CONTENT + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPECIAL = (
    "<|endoftext|>",
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)
# At 28 x 28 pixels a token, an image gets 2 to 12 tokens; an image counts as two frames.
VISION = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
VISION |= {"size": {"shortest_edge": 2 * 2 * 28**2, "longest_edge": 2 * 12 * 28**2}}


def glm_tokenizer(template: str, special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(special, template=template, eos="<|endoftext|>", pad="<|endoftext|>")


def glm_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the configs of the family's models take, dense decoder."""
    ids = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    text = {
        "model_type": "glm4v_text",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 0.5,
        },
        "eos_token_id": [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|user|>")],
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "model_type": "glm4v_vision",
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "image_size": 56,
        "out_hidden_size": 64,
        "intermediate_size": 64,
    }
    return {
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": False,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    }


def build(folder: Path) -> Path:
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(**VISION),
        tokenizer=glm_tokenizer(TEMPLATE),
        video_processor=Glm4vVideoProcessor(**VISION),
        chat_template=TEMPLATE,
    )
    config = Glm4vConfig(**glm_config(processor.tokenizer))
    return save_tiny(folder, Glm4vForConditionalGeneration, config, processor)


FAMILY = Family(
    "glm4v",
    "zai-org/GLM-4.1V-9B-Thinking, zai-org/GLM-4.6V-Flash",
    build,
    sizes=((60, 90), (90, 90), (56, 56), (120, 30)),
    opens="<|begin_of_image|>",
    closes="<|end_of_image|>",
    differs="3-D positions, no end-of-turn token",
)
