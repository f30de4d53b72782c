"""A tiny random LLaVA-OneVision-1.5 checkpoint in the layout in which the real ones are published."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_vlm import SPECIAL_TOKENS, TEXTS, balance_answers, randomise, train_tokenizer
from transformers import GenerationConfig, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from lad_pl.vlm.families.llava_onevision1_5 import LLaVAOneVision1_5_ForConditionalGeneration, LLaVAOneVision1_5Config

# The published files point to Python code beside them, written for transformers 4.
AUTO_MAP = {
    "AutoConfig": "configuration_llavaonevision1_5.Llavaonevision1_5Config",
    "AutoModel": "modeling_llavaonevision1_5.LLaVAOneVision1_5_ForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_llavaonevision1_5.LLaVAOneVision1_5_ForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_llavaonevision1_5.LLaVAOneVision1_5_ForConditionalGeneration",
}


def build_tiny_llava_onevision1_5(
    folder: Path | str,
    *,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 64,
    vocab: int = 640,
    seed: int = 0,
    std: float = 0.12,
    max_tokens_per_image: int = 9,
    texts: Sequence[str] = TEXTS,
) -> Path:
    """Write a tiny random checkpoint with its processor into `folder`, and return the folder.

    The arguments are those of `tiny_vlm.build_tiny_qwen`. Heads are wider than `hidden / heads`, as in Qwen3.
    `lad_pl.vlm.families.llava_onevision1_5.register` must have been called.
    """
    folder = Path(folder)
    tokenizer = train_tokenizer([*texts, "0123456789"], vocab)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = LLaVAOneVision1_5Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 24,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "text_hidden_size": hidden,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights from the global generator
        model = LLaVAOneVision1_5_ForConditionalGeneration(config).eval()
    randomise(model, seed, std)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    vision = {
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 1,
        "min_pixels": 4 * 28**2,
        "max_pixels": max_tokens_per_image * 28**2,
    }
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=tokenizer.chat_template,
    )
    balance_answers(model, processor, texts)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_as_published(folder, vision)
    return folder


def write_as_published(folder: Path, vision: dict[str, int]) -> None:
    """Rewrite the configuration as transformers 4 did, and add the image processor's in that form."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "image_token_id": None}
    config["vision_config"] |= {"embed_dim": config["vision_config"]["hidden_size"], "temporal_patch_size": 1}
    for part in (config, config["text_config"], config["vision_config"]):
        part["torch_dtype"] = part.pop("dtype", "float32")
    config |= {"auto_map": AUTO_MAP, "tie_word_embeddings": True, "transformers_version": "4.53.0"}
    path.write_text(json.dumps(config, indent=2))
    described = {
        **vision,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(described, indent=2))
