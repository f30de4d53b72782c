"""Models with random weights and real proportions, a processor made from scratch, photographs and questions.

``python -m benchmarks.models FOLDER --shape 0.4b`` writes a checkpoint that any command of lad_pl can load.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from lad_pl.errors import UserError
from lad_pl.prompts.template import BASE_TEMPLATE


@dataclass(frozen=True)
class Shape:
    """Proportions of a Qwen2.5-VL; patch 14, merge 2 and windows of 112 pixels are those of every published one."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    vision_hidden: int
    vision_depth: int
    vision_heads: int
    vision_intermediate: int

    @property
    def full_attention_blocks(self) -> list[int]:
        """Four vision blocks, evenly spaced, see the whole image; the others see windows."""
        return [(quarter + 1) * self.vision_depth // 4 - 1 for quarter in range(4)]


_PUBLISHED_TOWER = (1280, 32, 16, 3420)
SHAPES = {
    "tiny": Shape(64, 4, 4, 2, 128, 1024, True, 32, 4, 2, 64),
    # The language model of Qwen2.5-0.5B with a vision tower in the published proportion to it: a quarter of its size.
    "0.4b": Shape(896, 24, 14, 2, 4864, 32768, True, 512, 24, 8, 1368),
    "3b": Shape(2048, 36, 16, 2, 11008, 151936, True, *_PUBLISHED_TOWER),
    # Qwen3-8B's proportions, as in LLaVA-OneVision-1.5-8B.
    "8b": Shape(4096, 36, 32, 8, 12288, 151936, False, *_PUBLISHED_TOWER),
}

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # every digit by itself
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    *("a", "two", "three", "young", "old", "small", "large", "red", "green", "blue", "white", "wooden", "man", "woman"),
    *("child", "dog", "cat", "horse", "boat", "bicycle", "kitchen", "street", "beach", "table", "plate", "bench"),
    *("sitting", "standing", "riding", "holding", "eating", "watching", "on", "under", "beside", "near", "with"),
)


def build_model(folder: Path, shape: str = "0.4b", seed: int = 0, dtype: str = "float32", device: str = "cpu") -> Path:
    """Write a checkpoint with random weights into a folder, unless it holds one of this kind.

    Args:
        folder: where the checkpoint goes.
        shape: tiny, 0.4b (for a CPU), 3b or 8b (for a GPU).
        seed: of the weights.
        dtype: number format of the weights.
        device: where they are drawn; a GPU draws billions in seconds.
    """
    if shape not in SHAPES:
        raise UserError(f"There is no shape '{shape}'; choose from {', '.join(SHAPES)}.")
    made_of = json.dumps({**asdict(SHAPES[shape]), "seed": seed, "dtype": dtype, "device": device})
    note = folder / "made_of.json"
    if note.exists() and note.read_text() == made_of:
        return folder
    processor = build_processor()
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(build_config(SHAPES[shape], processor.tokenizer))
    model = model.to(getattr(torch, dtype)).to_empty(device=device)
    model.tie_weights()
    draw_weights(model, torch.Generator(device).manual_seed(seed))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    note.write_text(made_of)
    return folder


def build_config(shape: Shape, tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    head = shape.hidden // shape.heads
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16]}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,  # more rows than the tokenizer has words, as in the published checkpoints
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 32768,
            "rope_parameters": rope,
            "tie_word_embeddings": shape.tied,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden,
            "fullatt_block_indexes": shape.full_attention_blocks,
            "window_size": 112,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape.tied,
    )


@torch.no_grad()
def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Every linear map keeps its input's variance; queries and keys are wider, so that attention is not uniform."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        wider = 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.0
        parameter.normal_(0, wider * parameter[0].numel() ** -0.5, generator=generator)


def build_processor() -> Qwen2_5_VLProcessor:
    """Byte-level BPE over the prompt's words, and Qwen's own image processor."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [BASE_TEMPLATE, CHAT_TEMPLATE, " ".join(WORDS), "0123456789"]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        padding_side="left",
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_questions(folder: Path, num_samples: int, num_candidates: int, seed: int = 0) -> Path:
    """Write an annotation file and its photographs (640 x 480 JPEG, every sample its own N), and return its path.

    A file that is there stays as it is.
    """
    path = folder / f"annotations_{num_candidates}.json"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    words, pixels = random.Random(seed), np.random.default_rng(seed)
    entries = []
    for number in range(num_samples):
        names = [f"{number:04d}_{place:02d}.jpg" for place in range(num_candidates)]
        for name in names:
            synthetic_photo(pixels).save(folder / name, quality=90)
        caption = " ".join(words.choices(WORDS, k=words.randint(6, 14)))
        entries.append({"id": number, "image_ids": names, "index": number % num_candidates, "caption": caption})
    path.write_text(json.dumps(entries))
    return path


def synthetic_photo(generator: np.random.Generator) -> Image.Image:
    """Patches of colour with the grain of a camera: a JPEG as large and as slow to decode as a photograph's."""
    patches = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(patches.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = generator.normal(0, 8, smooth.shape).astype(np.float32)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


@contextmanager
def workspace(folder: str | None) -> Iterator[Path]:
    """The user's folder, or a temporary one that is removed afterwards."""
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="lad_pl_benchmarks_") as temporary:
        yield Path(temporary)


if __name__ == "__main__":
    print(auto_cli(build_model, as_positional=True))
