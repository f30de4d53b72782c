"""Aria: a fixed number of learnt queries per image, whatever its size, between two ordinary marker tokens; experts in
every layer of the language model."""

from __future__ import annotations

from pathlib import Path

from transformers import AriaConfig, AriaForConditionalGeneration, AriaImageProcessor, AriaProcessor

from .common import Family, metaspace_tokenizer, save_tiny

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] is iterable %}{% for item in message['content'] %}"
    "{% if item['type'] == 'text' %}{{ item['text'] }}"
    "{% elif item['type'] == 'image' %}<fim_prefix><|img|><fim_suffix>{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<fim_prefix>", "<fim_suffix>", "<|img|>")


def build(folder: Path) -> Path:
    tokenizer = metaspace_tokenizer(
        SPECIAL, template=TEMPLATE, bos="<s>", eos="</s>", pad="<unk>", named={"image_token": "<|img|>"}
    )
    # The image processor knows 490 and 980 pixels only, and the processor asks it for 980.
    processor = AriaProcessor(
        image_processor=AriaImageProcessor(max_image_size=980, min_image_size=336),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        size_conversion={980: 6},
    )
    config = AriaConfig(
        vision_config={
            "model_type": "idefics3_vision",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 980,
            "patch_size": 98,
        },
        text_config={
            "model_type": "aria_text",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "moe_num_experts": 4,
            "moe_topk": 2,
            "moe_num_shared_experts": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
        },
        projector_patch_to_query_dict={100: 6},
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return save_tiny(folder, AriaForConditionalGeneration, config, processor)


FAMILY = Family(
    "aria",
    "rhymes-ai/Aria",
    build,
    opens="<fim_prefix>",
    closes="<fim_suffix>",
    one_length=True,
    differs="learnt queries, experts",
)
