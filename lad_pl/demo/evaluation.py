"""A quick evaluation of the trained model: accuracy and position bias of its answers and of its attention.

The toolkit measures all this in full; these are the figures by which the recipe was chosen and which the model
card reports.

Axes: M prompts (samples x permutations), N images, L decoder layers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lad_pl.demo.language import Reader
from lad_pl.demo.questions import TOKENS_PER_IMAGE, Encoder
from lad_pl.demo.scenes import STANDARD
from lad_pl.demo.sets import SampleRecord
from lad_pl.demo.vision import all_features, draw_named
from lad_pl.demo.vocabulary import INDEX_QUESTION
from lad_pl.demo.world import World

PERMUTATIONS = 5
BATCH_SIZE = 32
FIRST_LAYER = 1
"""The first decoder layer (0-based) whose attention is read; in the layer before it, tokens only gather the text."""
MOST_ATTENTIVE = 2
"""Attention is averaged over this many layers: those with the most attention on the images."""


@dataclass(frozen=True)
class Outcome:
    """Figures of one set, in percent."""

    vanilla: float
    """Accuracy of the model's answers."""
    recall_std: float
    """RStd: standard deviation over positions of the recall at that position."""
    attention: float
    """Accuracy of the image with most attention from the last prompt token, in the most attentive layers."""
    attention_by_layer: tuple[float, ...]
    """The same for each decoder layer."""


@torch.no_grad()
def evaluate(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    samples: list[SampleRecord],
    world: World = STANDARD,
) -> Outcome:
    """Answers and attention on every sample under 5 permutations of its images, the identity among them."""
    names = sorted({name for sample in samples for name in sample["image_ids"]})
    features = dict(zip(names, all_features(model, processor, draw_named(world, names)), strict=True))
    encoder, reader = Encoder(processor), Reader(model)
    prompts = [(s["caption"], order, order.index(s["index"]), s) for s in samples for order in _permutations(s)]
    log_probs, masses = [], []
    model.set_attn_implementation("eager")
    for start in range(0, len(prompts), BATCH_SIZE):
        part = prompts[start : start + BATCH_SIZE]
        shown = torch.stack([torch.stack([features[s["image_ids"][k]] for k in order]) for _, order, _, s in part])
        scores, attention = _read(reader, encoder, [caption for caption, *_ in part], shown)
        log_probs.append(scores)
        masses.append(attention)
    model.set_attn_implementation("sdpa")
    return _summarise(torch.cat(log_probs), torch.cat(masses), torch.tensor([target for _, _, target, _ in prompts]))


def _permutations(sample: SampleRecord) -> list[list[int]]:
    """The identity and further distinct permutations of a sample's images, seeded by its id."""
    count = len(sample["image_ids"])
    generator = random.Random(sample["id"])
    orders = [list(range(count))]
    while len(orders) < PERMUTATIONS:
        order = generator.sample(range(count), count)
        if order not in orders:
            orders.append(order)
    return orders


def _read(reader: Reader, encoder: Encoder, captions: list[str], features: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the N indices [B, N] and head-averaged attention masses [B, L, N].

    A "1" is appended to every prompt: the same pass then gives the second digit of 10, 11 and 12.
    """
    candidates = features.shape[1]
    texts = [INDEX_QUESTION.format(N=candidates, caption=caption) for caption in captions]
    rows = [encoder.tokenizer(encoder.prompt(text, candidates)).input_ids for text in texts]
    digits = encoder.tokenizer("0123456789").input_ids
    width = max(map(len, rows)) + 1
    padding = encoder.tokenizer.pad_token_id
    input_ids = torch.tensor([[*row, digits[1], *[padding] * (width - 1 - len(row))] for row in rows])
    columns = (input_ids[0] == encoder.image_id).nonzero().flatten()
    output = reader(input_ids, columns, features, None, output_attentions=True)
    batch, last = torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])
    masses = torch.stack([layer.mean(dim=1)[batch, last][:, columns] for layer in output.attentions], dim=1)
    masses = masses.unflatten(-1, (candidates, TOKENS_PER_IMAGE)).sum(dim=-1)
    logits = reader.model.lm_head(output.last_hidden_state)
    first = logits[batch, last][:, digits[1 : min(candidates, 9) + 1]].log_softmax(dim=-1)
    if candidates <= 9:
        return first, masses
    follow = logits[batch, last + 1][:, [encoder.end_id, *digits[: candidates - 9]]].log_softmax(dim=-1)
    return torch.cat([first[:, :1] + follow[:, :1], first[:, 1:], first[:, :1] + follow[:, 1:]], dim=1), masses


def _summarise(log_probs: Tensor, masses: Tensor, targets: Tensor) -> Outcome:
    """Figures from log-probabilities [M, N], attention masses [M, L, N] and target positions [M]."""
    correct = log_probs.argmax(dim=1) == targets
    recalls = torch.stack([correct[targets == k].float().mean() for k in range(log_probs.shape[1])])
    read = masses[:, FIRST_LAYER:]
    layers = read.sum(dim=-1).topk(MOST_ATTENTIVE, dim=1).indices  # [M, 2]
    attention = read.gather(1, layers[:, :, None].expand(-1, -1, read.shape[-1])).mean(dim=1)
    by_layer = (masses.argmax(dim=-1) == targets[:, None]).float().mean(dim=0)
    return Outcome(
        vanilla=100 * correct.float().mean().item(),
        recall_std=100 * recalls.std().item(),
        attention=100 * (attention.argmax(dim=1) == targets).float().mean().item(),
        attention_by_layer=tuple(100 * share for share in by_layer.tolist()),
    )
