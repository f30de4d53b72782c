"""Stage 1: the vision tower learns to predict a picture's attribute words, as the LM's word embeddings.

No images are compared and no position is involved. Afterwards the tower is frozen, so that its features are
computed once for the language phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lad_pl.demo.schedule import Progress, make_optimizer
from lad_pl.demo.world import World

FEATURE_SCALE = 0.03
"""Scales the tower's features, whose norm after this stage is far larger than that of word embeddings."""


@dataclass(frozen=True)
class VisionRecipe:
    """Stage 1's settings."""

    steps: int = 1200
    batch_size: int = 192
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Pictures:
    """Rendered scenes. `pixels`: uint8 [P, 3, 56, 56]; `words`: [P, A], the attributes' word indices."""

    pixels: Tensor
    words: Tensor

    def __len__(self) -> int:
        return len(self.words)


def draw_pictures(world: World, scenes: tuple[int, ...], jitters: range) -> Pictures:
    """Every scene under every jitter seed; picture number = scene's rank * len(jitters) + jitter's rank."""
    return _draw(world, [(index, jitter) for index in scenes for jitter in jitters])


def draw_named(world: World, names: list[str]) -> Pictures:
    """The pictures of these image names, in their order."""
    return _draw(world, [world.parse_name(name) for name in names])


def _draw(world: World, wanted: list[tuple[int, int]]) -> Pictures:
    drawn = [(world.scene.from_index(index), jitter) for index, jitter in wanted]
    numbers = [
        [words.index(word) for word, words in zip(scene.words, scene.ATTRIBUTES.values(), strict=True)]
        for scene, _ in drawn
    ]
    arrays = [world.render_array(scene, jitter) for scene, jitter in drawn]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return Pictures(pixels, torch.tensor(numbers))


def image_features(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, pixels: Tensor) -> Tensor:
    """The visual tokens of pictures, uint8 [P, 3, 56, 56] -> float [P, 4, width]."""
    inputs = processor.image_processor(images=list(pixels), return_tensors="pt")
    features = model.model.get_image_features(inputs.pixel_values, inputs.image_grid_thw).pooler_output
    return torch.stack(list(features))


def attribute_logits(states: Tensor, embeddings: Tensor, processor: Qwen2_5_VLProcessor, world: World) -> list[Tensor]:
    """States [..., width] against the embeddings of each attribute's words: a tensor [..., words] per attribute.

    The words of the second object, where there is one, are read from the state with its halves exchanged. So one
    state can say of both objects what they are, in the same words.
    """
    halves_exchanged = states.roll(states.shape[-1] // 2, dims=-1)
    logits = []
    for words, which in zip(world.scene.ATTRIBUTES.values(), world.objects, strict=True):
        ids = processor.tokenizer.convert_tokens_to_ids(["Ġ" + word for word in words])
        logits.append((halves_exchanged if which else states) @ embeddings[ids].T)
    return logits


def attribute_loss(
    states: Tensor, words: Tensor, embeddings: Tensor, processor: Qwen2_5_VLProcessor, world: World
) -> Tensor:
    """Mean cross-entropy in nats of naming the attributes `words` [B, A] from `states` [B, width]."""
    logits = attribute_logits(states, embeddings, processor, world)
    losses = [F.cross_entropy(of_attribute, words[:, a]) for a, of_attribute in enumerate(logits)]
    return torch.stack(losses).mean()


def train_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    pictures: Pictures,
    world: World,
    recipe: VisionRecipe,
    seed: int,
) -> None:
    """Train the vision tower in place; each visual token and their mean have to name all attributes."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = model.model.language_model.embed_tokens.weight.detach()
    tower = model.model.visual
    optimizer, schedule = make_optimizer(tower.parameters(), recipe.learning_rate, recipe.steps)
    progress = Progress("vision", recipe.steps)
    for step in range(recipe.steps):
        batch = torch.randint(len(pictures), (recipe.batch_size,), generator=generator)
        tokens = image_features(model, processor, pictures.pixels[batch])
        words = pictures.words[batch]
        of_tokens = words.repeat_interleave(tokens.shape[1], dim=0)
        each = attribute_loss(tokens.flatten(0, 1), of_tokens, embeddings, processor, world)
        whole = attribute_loss(tokens.mean(dim=1), words, embeddings, processor, world)
        optimizer.zero_grad()
        (each + whole).backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.show(step, token_loss=each, mean_loss=whole)
    with torch.no_grad():
        tower.merger.mlp[-1].weight.mul_(FEATURE_SCALE)
        tower.merger.mlp[-1].bias.mul_(FEATURE_SCALE)


@torch.no_grad()
def vision_accuracy(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, pictures: Pictures, world: World
) -> float:
    """Share of pictures for which the mean visual token predicts all attributes correctly."""
    features = all_features(model, processor, pictures).mean(dim=1)
    embeddings = model.model.language_model.embed_tokens.weight
    logits = attribute_logits(features, embeddings, processor, world)
    named = torch.stack([of_attribute.argmax(dim=-1) for of_attribute in logits], dim=1)
    return (named == pictures.words).all(dim=1).float().mean().item()


@torch.no_grad()
def all_features(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, pictures: Pictures
) -> Tensor:
    """The visual tokens of all pictures, float [P, 4, width]."""
    return torch.cat([image_features(model, processor, pixels) for pixels in pictures.pixels.split(256)])
