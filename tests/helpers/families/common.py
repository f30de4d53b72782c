"""What the tiny checkpoints share: tokenizers trained on the spot, random weights, one way to be saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_vlm import QWEN_SPLIT, TEXTS, randomise
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

CORPUS = (*TEXTS, "0123456789", "I II III IV V VI first second third A B C D a b c d")


@dataclass(frozen=True)
class Family:
    """One model family in miniature.

    `build` writes an ordinary checkpoint folder: tiny random weights of the real class and the real processor, built
    from scratch, so that `AutoModelForImageTextToText` and `AutoProcessor` load it without network or remote code.
    """

    name: str
    """The model_type of its config.json."""
    checkpoints: str
    """Published checkpoints of the family that people use, as hub ids."""
    build: Callable[[Path], Path]
    sizes: Sequence[tuple[int, int]] = ((60, 90), (90, 60), (56, 56), (120, 40))
    """(width, height) of the test's images, in turn; chosen so that images yield different numbers of tokens or tiles
    wherever the family allows it."""
    opens: str = ""
    """Token that opens an image, where there is one besides its visual tokens."""
    closes: str | tuple[str, ...] = ""
    """Token that closes an image, or several that may."""
    one_length: bool = False
    """Whether every image has the same number of visual tokens, whatever its size."""
    differs: str = ""
    """What sets the family apart where this toolkit is concerned, in a few words for the table of models."""

    @property
    def class_name(self) -> str:
        """The model class that the Auto class gives for this model_type."""
        return AutoModelForImageTextToText._model_mapping[CONFIG_MAPPING[self.name]].__name__


def byte_level_tokenizer(
    special: Sequence[str],
    *,
    template: str,
    bos: str | None = None,
    eos: str,
    pad: str,
    named: Mapping[str, str] | None = None,
    vocab: int = 640,
    cls: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast,
    add_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE (GPT-2, Qwen, Llama 3 kind) with its special tokens and chat template; every digit is a token.

    `named` gives the tokens that a processor asks its tokenizer for by name, e.g. `{"image_token": "<image>"}`.
    `add_bos` lets the tokenizer put `bos` before every text, as Llama's does.
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
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    return _finished(bpe, trainer, special, template, bos, eos, pad, named, cls, add_bos)


def metaspace_tokenizer(
    special: Sequence[str],
    *,
    template: str,
    bos: str | None = None,
    eos: str,
    pad: str,
    named: Mapping[str, str] | None = None,
    vocab: int = 640,
    cls: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast,
    add_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """A BPE over spaces written as U+2581 with byte fallback (SentencePiece, Gemma and Llama 2 kind)."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Replace(" ", "\u2581")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|\n+"), behavior="isolated"),
            pre_tokenizers.Split("\u2581", "merged_with_next"),
        ]
    )
    bpe.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]],
        initial_alphabet=[chr(code) for code in range(32, 127)],
        show_progress=False,
    )
    return _finished(bpe, trainer, special, template, bos, eos, pad, named, cls, add_bos)


def _finished(
    bpe: Tokenizer,
    trainer: trainers.BpeTrainer,
    special: Sequence[str],
    template: str,
    bos: str | None,
    eos: str,
    pad: str,
    named: Mapping[str, str] | None,
    cls: type[PreTrainedTokenizerFast],
    add_bos: bool,
) -> PreTrainedTokenizerFast:
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.add_special_tokens(list(special))
    if add_bos:
        if bos is None:
            raise ValueError("add_bos needs a bos token")
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return cls(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        chat_template=template,
        extra_special_tokens=dict(named or {}),
    )


def save_tiny(
    folder: Path,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    processor: ProcessorMixin,
    *,
    std: float = 0.12,
    seed: int = 0,
) -> Path:
    """Write `model_class` with random weights and `processor` into `folder`, and return it.

    Weights are wide enough that attention is far from uniform and that every image moves the logits.
    """
    tokenizer = processor.tokenizer
    with torch.random.fork_rng(devices=[]):
        model = model_class(config).eval()
    randomise(model, seed, std)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
