"""The language phases of the training: retrieval at uniform positions, then at skewed ones.

Phase A trains retrieval with the correct image at uniform positions, phase B continues with a skewed distribution
of its position, which causes the bias. Attention is never a target of the loss.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lad_pl.demo.questions import (
    Encoder,
    PositionWeights,
    QuestionBatch,
    draw_question,
    skewed_positions,
    uniform_positions,
)
from lad_pl.demo.schedule import Progress, make_optimizer
from lad_pl.demo.vision import attribute_loss
from lad_pl.demo.world import World

CAPTION_WEIGHT = 0.2
SUMMARY_LAYER = 2
"""The summary loss reads the residual stream after this many decoder layers."""


@dataclass(frozen=True)
class LanguageRecipe:
    """A language phase's settings."""

    name: str
    steps: int
    fewest_images: int
    most_images: int
    index_share: float
    """Share of index questions; the others are content questions, answered by a word."""
    weights: PositionWeights
    blind_share: float
    """Share of questions whose prompt tokens, except the last, cannot see the images."""
    summary_weight: float
    """Weight of the summary loss: the last prompt token has to predict the caption's words."""
    learning_rate: float
    batch_size: int = 48


# Without the summary loss and the blinding, the caption's own tokens retrieve the image and the last prompt
# token only copies the result: its attention would stay at chance. Both are used in training only.
PHASE_A = LanguageRecipe(
    name="phase A",
    steps=1000,
    fewest_images=2,
    most_images=4,
    index_share=0.5,
    weights=uniform_positions,
    blind_share=0.5,
    summary_weight=0.5,
    learning_rate=1.5e-3,
)
PHASE_B = LanguageRecipe(
    name="phase B",
    steps=600,
    fewest_images=2,
    most_images=12,
    index_share=0.6,
    weights=skewed_positions,
    blind_share=0.1,
    summary_weight=0.0,
    learning_rate=1.0e-3,
)


def control(phase_b: LanguageRecipe) -> LanguageRecipe:
    """Phase B with the correct image at uniform positions."""
    return replace(phase_b, name="phase B, uniform positions", weights=uniform_positions)


class Reader:
    """The decoder on precomputed image features; used by training and evaluation alike."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        self.model = model
        self.decoder = model.model.language_model

    def positions(self, input_ids: Tensor, image_columns: Tensor) -> Tensor:
        """The 3-D positions of right-padded prompts [B, S] that share their image columns -> [3, B, S]."""
        kinds = torch.zeros_like(input_ids[:1], dtype=torch.int)
        kinds[:, image_columns] = 1
        grids = torch.tensor([[1, 4, 4]] * (len(image_columns) // 4))
        positions, _ = self.model.model.get_rope_index(input_ids[:1], kinds, image_grid_thw=grids)
        return positions.expand(-1, len(input_ids), -1)

    def __call__(
        self,
        input_ids: Tensor,
        image_columns: Tensor,
        features: Tensor,
        mask: Tensor | None,
        **outputs: bool,
    ) -> Any:
        """Run the decoder on prompts [B, S] whose image columns hold `features` [B, N, 4, width].

        `mask` is bool [B, 1, S, S], True where a query sees a key; None is causal. `outputs` enables further
        outputs of the decoder, such as `output_attentions=True`.
        """
        embeddings = self.decoder.embed_tokens(input_ids)
        columns = image_columns[None, :, None].expand(len(input_ids), -1, embeddings.shape[-1])
        embeddings = embeddings.scatter(1, columns, features.flatten(1, 2).to(embeddings.dtype))
        return self.decoder(
            inputs_embeds=embeddings,
            position_ids=self.positions(input_ids, image_columns),
            attention_mask=mask,
            use_cache=False,
            **outputs,
        )


def blinding_mask(batch: QuestionBatch, blind: Tensor) -> Tensor:
    """Causal mask; in `blind` [B] questions, the text before the last prompt token cannot see the images.

    Returns bool [B, 1, S, S], True where the row's token (query) sees the column's (key).
    """
    columns = torch.arange(batch.input_ids.shape[1])
    causal = columns[:, None] >= columns[None, :]
    is_image = torch.zeros(len(columns), dtype=torch.bool)
    is_image[batch.image_columns] = True
    is_text = (columns > batch.image_columns[-1]) & (columns < batch.last[:, None])  # [B, S]
    hidden = (blind[:, None] & is_text)[:, :, None] & is_image
    return (causal & ~hidden)[:, None]


def language_loss(
    reader: Reader,
    batch: QuestionBatch,
    features: Tensor,
    mask: Tensor,
    summary_weight: float,
    processor: Qwen2_5_VLProcessor,
    world: World,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss, and its parts in nats: answer, caption and, if its weight is positive, summary."""
    output = reader(batch.input_ids, batch.image_columns, features, mask, output_hidden_states=summary_weight > 0)
    logits = reader.model.lm_head(output.last_hidden_state).flatten(0, 1)
    parts = {
        "answer": F.cross_entropy(logits, batch.answer_labels.flatten()),
        "caption": F.cross_entropy(logits, batch.caption_labels.flatten()),
    }
    total = parts["answer"] + CAPTION_WEIGHT * parts["caption"]
    if summary_weight > 0:
        states = output.hidden_states[SUMMARY_LAYER][torch.arange(len(batch.last)), batch.last]
        embeddings = reader.decoder.embed_tokens.weight
        parts["summary"] = attribute_loss(reader.decoder.norm(states), batch.stated_words, embeddings, processor, world)
        total = total + summary_weight * parts["summary"]
    return total, parts


def train_language(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    features: Tensor,
    world: World,
    recipe: LanguageRecipe,
    seed: int,
) -> None:
    """Train the decoder in place on features [training scenes, jitters, 4, width] of the frozen tower."""
    generator = random.Random(f"{recipe.name} {seed}")
    encoder, reader = Encoder(processor), Reader(model)
    rank = {scene: number for number, scene in enumerate(world.splits.training)}
    optimizer, schedule = make_optimizer(reader.decoder.parameters(), recipe.learning_rate, recipe.steps)
    progress = Progress(recipe.name, recipe.steps)
    for step in range(recipe.steps):
        candidates = generator.randint(recipe.fewest_images, recipe.most_images)
        questions = [
            draw_question(world, candidates, recipe.index_share, recipe.weights, generator)
            for _ in range(recipe.batch_size)
        ]
        shown = torch.tensor([[rank[scene.index] for scene in question.scenes] for question in questions])
        jitters = torch.tensor([[generator.randrange(features.shape[1]) for _ in row] for row in shown])
        batch = encoder.encode(questions)
        blind = torch.tensor([generator.random() < recipe.blind_share for _ in questions])
        mask = blinding_mask(batch, blind)
        shown_features = features[shown, jitters]
        loss, parts = language_loss(reader, batch, shown_features, mask, recipe.summary_weight, processor, world)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.show(step, **parts)
