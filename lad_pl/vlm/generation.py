"""Free-text answers: ``model.generate`` with image features computed once per distinct image."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from lad_pl.errors import UserError, check_at_least
from lad_pl.prompts.answer_parsing import THINKING_OPENED
from lad_pl.types import Batch
from lad_pl.vlm.model import VisionLanguageModel

_THINKING_TOKEN = re.compile(r"think|thought|channel", re.I)
_FORBIDDEN = ("bad_words_ids", "suppress_tokens")


@dataclass(frozen=True)
class Decoding:
    """How texts are generated. Of the model's own generation settings only these are used: the tokens that end a text
    and those that must not occur (``bad_words_ids``, ``suppress_tokens``).

    Raises:
        UserError: a value is out of range, or temperature 0 would make several chains the same.
    """

    max_new_tokens: int
    """Tokens after which a text is cut off."""
    chains: int = 1
    """Texts per prompt, sampled independently of one another."""
    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0 takes the most probable token each time."""
    top_k: int | None = None
    """Draw from the k most probable tokens; null draws from all."""
    seed: int = 42
    """Seed of the sampling, together with the sample's id, the order of its images and the number of the chain."""

    def __post_init__(self) -> None:
        check_at_least(1, max_new_tokens=self.max_new_tokens, chains=self.chains)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}; give 0 (no sampling) or a positive number.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; give 1 or more, or null to draw from all tokens.")
        if self.temperature == 0 and (self.chains > 1 or self.top_k is not None):
            raise UserError("temperature is 0, so nothing is sampled; set it above 0, or leave out chains and top_k.")


@torch.no_grad()
def generate(vlm: VisionLanguageModel, batch: Batch, decoding: Decoding) -> tuple[tuple[str, ...], ...]:
    """Generate ``decoding.chains`` texts for each prompt.

    The vision tower encodes every distinct image once and the language model reads every prompt once, whatever the
    number of chains. A prompt's text does not depend on the other prompts of the batch, up to rounding. Samples on a
    GPU differ from those on a CPU; both are exact samples.

    Args:
        vlm: the model.
        batch: B prompts.
        decoding: length, number of chains and sampling.

    Returns:
        B times ``decoding.chains`` texts, without the model's special tokens but with its thinking tags. If the prompt
        ends with a tag that opens a chain of thought, the text begins with that tag.

    Raises:
        UserError: the model cannot generate text from a key-value cache, or a prompt with its answer is longer than its
            context.
    """
    batch = batch.to(vlm.device)
    vlm.check_context(batch, decoding.max_new_tokens)
    config = _generation_config(vlm, decoding)
    generated = _generated(vlm, batch, decoding, config).tolist()
    texts = _Texts(vlm.processor.tokenizer, config.eos_token_id)
    opened = [texts.opened_thought(prompt) for prompt in batch.tokens["input_ids"].tolist()]
    return tuple(tuple(start + texts(ids) for ids in chains) for start, chains in zip(opened, generated, strict=True))


def _generated(vlm: VisionLanguageModel, batch: Batch, decoding: Decoding, config: GenerationConfig) -> Tensor:
    """(B, chains, new tokens): token ids, padded after a text's end."""
    model, chains = vlm.model, decoding.chains
    if not (model.can_generate() and model._supports_default_dynamic_cache()):
        raise UserError(f"{type(model).__name__} cannot generate text from a key-value cache; choose other methods.")
    inputs = vlm.inputs(batch)
    cache = _prefilled(model, inputs, chains)
    del inputs["mm_encoder_outputs"]  # the cache holds what the prompts' images contribute
    inputs = {name: values.repeat_interleave(chains, dim=-2) for name, values in inputs.items()}
    with _sole_generation_config(model, config):
        # Not model.generate: Janus overrides it and loses the logits processors there.
        sequences: Any = GenerationMixin.generate(
            model,
            **inputs,
            past_key_values=cache,
            generation_config=config,
            logits_processor=_logits_processors(batch, decoding),
        )
    return sequences.unflatten(0, (len(batch), chains))[..., batch.tokens["input_ids"].shape[1] :]


def _prefilled(model: Any, inputs: dict[str, Any], chains: int) -> DynamicCache:
    """The cache of each prompt without its last token, repeated ``chains`` times, for generation to start from."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    prompt = {
        name: values[..., :-1] if isinstance(values, Tensor) else values  # (B, S), or (axes, B, S)
        for name, values in inputs.items()
    }
    # The inputs that generate() itself would pass to the model, family by family.
    prepared = model.prepare_inputs_for_generation(
        **prompt, past_key_values=cache, use_cache=True, is_first_iteration=True
    )
    model(**prepared, logits_to_keep=1)
    if chains > 1:  # a recurrent layer's cache has no batch_repeat_interleave
        rows: Any = torch.arange(len(inputs["input_ids"])).repeat_interleave(chains)
        cache.reorder_cache(rows)
    return cache


def _generation_config(vlm: VisionLanguageModel, decoding: Decoding) -> GenerationConfig:
    own, tokenizer = vlm.model.generation_config, vlm.processor.tokenizer
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,  # GumbelNoise samples
        eos_token_id=ends or None,
        pad_token_id=filler,
        **{name: getattr(own, name, None) for name in _FORBIDDEN},
    )


@contextmanager
def _sole_generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """``generate`` fills unset fields from the model's generation configuration; replace that by ``config``."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def _logits_processors(batch: Batch, decoding: Decoding) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if decoding.temperature > 0:
        processors.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if decoding.top_k is not None:
            processors.append(TopKLogitsWarper(decoding.top_k))
        processors.append(GumbelNoise(_seeds(batch, decoding)))
    return processors


def _seeds(batch: Batch, decoding: Decoding) -> list[int]:
    """A seed for each of the B times ``chains`` texts, whatever the batch that the prompt is in."""
    keys = [
        json.dumps([decoding.seed, name, permutation, chain])
        for name, permutation in zip(batch.ids, batch.permutations.tolist(), strict=True)
        for chain in range(decoding.chains)
    ]
    return [int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1 for key in keys]


class GumbelNoise(LogitsProcessor):
    """Adds standard Gumbel noise to every score, so that the argmax is an exact sample of their softmax.

    Each row has its own generator, so that its samples do not depend on the other rows.

    Args:
        seeds: one per row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = seeds
        self.generators: list[torch.Generator] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: D102
        if not self.generators:
            self.generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        # In double precision: in single precision the noise is at most 17, too little to ever draw a rare token.
        waits = torch.empty_like(scores, dtype=torch.float64)
        for row, generator in zip(waits, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - waits.log_()


class _Texts:
    """Decodes generated token ids.

    Args:
        tokenizer: the model's.
        ends: ids of the tokens that end a text.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int] | None) -> None:
        self.tokenizer = tokenizer
        self.ends = set(ends or ())
        special = {token: str(added) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self.dropped = {token for token, text in special.items() if not _THINKING_TOKEN.search(text)}

    def __call__(self, ids: Sequence[int]) -> str:
        """The text up to the first token that ends it, without special tokens except thinking tags."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        return self._decoded([token for token in ids[:end] if token not in self.dropped])

    def opened_thought(self, prompt: Sequence[int]) -> str:
        """The tag at the end of the prompt that opens a chain of thought, with its whitespace; empty without one."""
        tail = self._decoded(prompt[-16:])
        match = re.search(rf"(?:{THINKING_OPENED.pattern})\s*$", tail, THINKING_OPENED.flags)
        return match[0] if match else ""

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
