"""Batches filled by tokens: how much of them is padding, and whether a batch changes a prompt's log-probabilities."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Figure, run
from benchmarks.models import WORDS, build_model, synthetic_photo, workspace
from lad_pl import PromptSpec, VisionLanguageModel, VLMSpec
from lad_pl.data.batches import plan_batches
from lad_pl.data.images import load_photo, size_of
from lad_pl.data.permutations import random_permutations
from lad_pl.types import Batch, PermutedSample, Sample
from lad_pl.vlm.prompt_length import PromptLengths


@dataclass(frozen=True)
class Options:
    shape: str = "tiny"
    """Of the model: tiny, 0.4b, 3b or 8b."""
    num_candidates: int = 4
    """N."""
    samples: int = 60
    """How many there are."""
    permutations: int = 5
    """T."""
    batch_tokens: int = 16384
    """data.batch_tokens."""
    compared: int = 20
    """How many samples also go through the model alone."""
    seed: int = 0
    """Of sizes and captions."""
    folder: str | None = None
    """Where model and photographs are kept; a temporary one if unset."""


def batching(options: Options) -> Iterator[Figure]:
    """Padding in the batches of ``data.batch_size auto``, and log-probabilities in a batch and alone.

    Every image has a size of its own, between 140 and 420 pixels a side; captions have 3 to 40 words.
    """
    samples, n, permutations = options.samples, options.num_candidates, options.permutations
    with workspace(options.folder) as path:
        folder = build_model(path / f"{options.shape}-float32", options.shape)
        vlm = VisionLanguageModel.load(VLMSpec(str(folder), dtype="float32"))
        encoder = vlm.encoder(PromptSpec(image_size=None))
        orders = random_permutations(n, permutations)
        photos = path / f"photos-of-many-sizes-{n}-{samples}-{options.seed}"
        items = [
            PermutedSample(sample, number, orders, tuple(load_photo(name, photos, None) for name in sample.images))
            for number, sample in enumerate(many_sizes(photos, samples, n, options.seed))
        ]
        length = PromptLengths(encoder)
        lengths = [length(item.sample, [size_of(photos / name) for name in item.sample.images]) for item in items]
        planned = plan_batches(lengths, permutations, None, options.batch_tokens)
        batches = [encoder([items[number] for number in batch]) for batch in planned]
        note = f"{len(batches)} batches, prompts of {min(lengths)} to {max(lengths)} tokens"
        yield Figure("padding", (padding(batches),), " %", at_most=5.0, note=note)
        each = -(-samples // len(planned))
        as_they_come = [encoder(items[start : start + each]) for start in range(0, samples, each)]
        yield Figure("padding in the annotations' order", (padding(as_they_come),), " %")

        trie, layers = encoder.answer_trie(n), vlm.layers.choose(0.58)
        apart = []
        for numbers, batch in zip(planned, batches, strict=True):
            together = vlm.evidence(batch, trie, layers).log_probs.split(permutations)
            for number, log_probs in zip(numbers, together, strict=True):
                if number < options.compared:
                    alone = vlm.evidence(encoder([items[number]]), trie, layers).log_probs
                    apart.append(1e6 * float((alone - log_probs).abs().max()))
        name = "log-probabilities, in a batch or alone, largest difference"
        note = f"over {len(apart) * permutations} prompts"
        yield Figure(name, (max(apart),), " x 1e-6", at_most=100.0, note=note)


def padding(batches: Sequence[Batch]) -> float:
    """How many percent of the batches' tokens are padding."""
    masks = [batch.tokens["attention_mask"] for batch in batches]
    return 100 * (1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks))


def many_sizes(folder: Path, count: int, n: int, seed: int) -> list[Sample]:
    """Questions about photographs of many sizes, which are written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, pixels = random.Random(seed), np.random.default_rng(seed)
    photo = synthetic_photo(pixels)
    made = []
    for number in range(count):
        names = tuple(f"{number:04d}_{place:02d}.jpg" for place in range(n))
        for name in names:
            size = (draw.randint(140, 420), draw.randint(140, 420))
            photo.resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=90)
        made.append(Sample(str(number), names, " ".join(draw.choices(WORDS, k=draw.randint(3, 40))), number % n))
    return made


if __name__ == "__main__":
    run(batching)
