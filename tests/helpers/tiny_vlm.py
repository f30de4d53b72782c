"""A tiny random Qwen2.5-VL checkpoint, and images and annotations to show it: offline test inputs.

The checkpoint is an ordinary local folder, loaded by plain
`AutoModelForImageTextToText.from_pretrained(folder)` and `AutoProcessor.from_pretrained(folder)` with no
network and no remote code. It knows nothing; what it is for is that attention is far from uniform and that
answers differ between prompts and between orders of the images.
"""

import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from paths import SHARED
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

PHOTOS = SHARED / "photos"

# Qwen's own splitting rule: words, and every digit by itself.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXTS = (
    "Given 4 images indexed from 1 to 4, identify the image that best matches the provided caption.",
    "Respond with the index number only and nothing else.\nCaption: A dog lies on the grass.\nAnswer: ",
    "You are a helpful assistant. system user assistant",
    "Think step by step inside <think></think>, then give the index. The answer is 1.",
    "A small kitchen with a low ceiling. Two giraffes in a room with people looking at them.",
    "A motorcycle parked in a parking space next to another motorcycle.",
)


def train_tokenizer(texts: Sequence[str], vocab: int) -> Qwen2Tokenizer:
    """A byte-level BPE of at most `vocab` entries over `texts`, with Qwen's special tokens after it.

    The alphabet holds all 256 bytes, so any text can be encoded, whatever it was trained on.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # sorted: the order decides the token ids
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
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
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(tokenizer: Qwen2Tokenizer, *, layers: int, heads: int, kv_heads: int, hidden: int) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's configuration in miniature, its token ids those of `tokenizer`."""
    head_dim = hidden // heads
    if hidden % heads or heads % kv_heads or head_dim % 4:
        raise ValueError("hidden must be a multiple of 4 * heads, and heads one of kv_heads")
    # Rotary sections for time, height and width, in pairs of channels, as in Qwen's 16 + 24 + 24.
    time = head_dim // 8
    height = (head_dim // 2 - time) // 2
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 4096,
            "max_window_layers": layers,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [time, height, head_dim // 2 - time - height],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        # Tied random embeddings would make every answer an echo of the last prompt token.
        tie_word_embeddings=False,
    )


def randomise(model: torch.nn.Module, seed: int, std: float) -> None:
    """Draw every weight anew from an own generator; norms stay near one.

    Queries and keys are drawn wider: only so does the softmax over a prompt's tokens get far from uniform.
    The generator is seeded by seed and parameter name, so that a model with one more layer shares the others'
    weights.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if "norm" in name or "ln_q" in name:
                parameter.copy_(1 + 0.1 * noise)
            elif any(part in name for part in ("q_proj", "k_proj", "qkv")):
                parameter.copy_(1.5 * std * noise)
            else:
                parameter.copy_(std * noise)


def balance_answers(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, texts: Sequence[str]
) -> None:
    """Take what the last hidden state of every prompt has in common out of the output layer.

    A random model's last token sees mostly the same words in every prompt, so that one answer would win all
    of them. What is left of the logits is what the images, their order and the caption contribute.
    """
    generator = np.random.default_rng(0)
    images = [noise_image(generator, (112, 112)) for _ in range(32)]
    chats = []
    for number in range(8):
        caption = texts[number % len(texts)]
        text = f"Given 4 images indexed from 1 to 4.\nCaption: {caption}\nAnswer: "
        content = [{"type": "image"}] * 4 + [{"type": "text", "text": text}]
        chats.append([{"role": "user", "content": content}])
    prompts = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    groups = [images[start : start + 4] for start in range(0, 32, 4)]
    inputs = processor(text=prompts, images=groups, padding=True, return_tensors="pt")
    with torch.no_grad():
        common = model.model(**inputs).last_hidden_state[:, -1].mean(dim=0)
        common /= common.norm()
        weight = model.lm_head.weight
        weight -= torch.outer(weight @ common, common)


def build_tiny_qwen(
    folder: Path | str,
    *,
    layers: int = 6,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 64,
    vocab: int = 640,
    seed: int = 0,
    std: float = 0.12,
    max_tokens_per_image: int = 9,
    texts: Sequence[str] = TEXTS,
) -> Path:
    """Write a tiny random Qwen2.5-VL checkpoint with its processor into `folder`, and return the folder.

    Args:
        layers, heads, kv_heads, hidden: shape of the language model; `hidden` a multiple of `4 * heads`.
        vocab: most entries of the tokenizer, special tokens included (fewer where `texts` yield fewer).
        seed: of the weights; the same arguments give the same weights on one machine.
        std: of the weights; queries and keys are drawn 1.5 times as wide.
        max_tokens_per_image: an image is scaled down to at most this many visual tokens (28 x 28 pixels
        each). texts: what the tokenizer is trained on, besides the ten digits.
    """
    folder = Path(folder)
    tokenizer = train_tokenizer([*texts, "0123456789"], vocab)
    config = tiny_config(tokenizer, layers=layers, heads=heads, kv_heads=kv_heads, hidden=hidden)
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights from the global generator
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    randomise(model, seed, std)
    size = {"shortest_edge": 4 * 28**2, "longest_edge": max_tokens_per_image * 28**2}
    vision = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )
    balance_answers(model, processor, texts)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=[tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")],
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_photo_annotations(folder: Path | str, num_samples: int, num_candidates: int, seed: int = 0) -> Path:
    """Write `annotations.json` over the photographs of `PHOTOS`, and return its path.

    A list of `{id, image_ids, index, caption}`: `image_ids` are file names within `PHOTOS / "coco"`, `index`
    counts from 0, `caption` is one of the captions of the image at `index`. Images of one sample are
    distinct, the targets of the samples as well where there are enough photographs, and the target's position
    is uniform.
    """
    photos = json.loads((PHOTOS / "coco_captions.json").read_text())
    photos = [photo for photo in photos if photo["captions"] and (PHOTOS / "coco" / photo["file_name"]).exists()]
    generator = random.Random(seed)
    order = generator.sample(photos, len(photos))
    annotations = []
    for sample in range(num_samples):
        target = order[sample % len(order)]
        others = [photo for photo in photos if photo is not target]
        shown = generator.sample(others, num_candidates - 1)
        index = generator.randrange(num_candidates)
        shown.insert(index, target)
        annotations.append(
            {
                "id": sample,
                "image_ids": [photo["file_name"] for photo in shown],
                "index": index,
                "caption": generator.choice(target["captions"]).strip(),
            }
        )
    path = Path(folder) / "annotations.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(annotations, indent=1))
    return path


def noise_image(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Coarse coloured noise of `size` (width, height).

    Each image has its own mean colour and blocks that survive scaling down, so that no two look alike to a
    model.
    """
    colour = generator.uniform(0, 255, 3)
    blocks = np.clip(colour + generator.normal(0, 60, (6, 6, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def write_noise_images(
    folder: Path | str, count: int, sizes: Sequence[tuple[int, int]] = ((96, 96),), seed: int = 0
) -> list[Path]:
    """Write `count` PNGs of coloured noise, `sizes` (width, height) in turn, and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        paths.append(folder / f"noise_{number:03d}.png")
        noise_image(generator, sizes[number % len(sizes)]).save(paths[-1])
    return paths
