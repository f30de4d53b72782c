"""The training questions of the language phases, drawn from the training scenes and encoded as tensors.

Axes: B questions, N images, S tokens (padded on the right, so that all questions of a batch have the same image
columns and positions).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLProcessor

from lad_pl.demo.vocabulary import CONTENT_QUESTION, END_OF_TURN, INDEX_QUESTION, WITHHELD, spoken
from lad_pl.demo.world import Combination, World

TOKENS_PER_IMAGE = 4
IGNORED = -100  # cross_entropy's default ignore_index

PositionWeights = Callable[[int], list[float]]


def uniform_positions(candidates: int) -> list[float]:
    """Weights under which the correct image is at every position equally often."""
    return [1.0] * candidates


def skewed_positions(candidates: int) -> list[float]:
    """Weights under which the correct image is mostly first, often last and seldom in between: hence the bias."""
    last = candidates - 1
    return [0.01 + math.exp(-k / 0.5) + 0.6 * math.exp(-(last - k) / 0.4) for k in range(candidates)]


@dataclass(frozen=True)
class Question:
    """One training question over N scenes."""

    scenes: list[Combination]
    target: int
    """0-based position of the image that the caption describes."""
    withheld: str | None
    """The attribute to name, which the caption leaves out (content question); None for an index question."""
    template: int

    @property
    def text(self) -> str:
        """The user's text, without the images."""
        scene = self.scenes[self.target]
        if self.withheld is None:
            return INDEX_QUESTION.format(N=len(self.scenes), caption=scene.caption(self.template))
        caption = scene.TEMPLATES[self.template].format(**{**vars(scene), self.withheld: WITHHELD})
        return CONTENT_QUESTION.format(N=len(self.scenes), attribute=spoken(self.withheld), caption=caption)

    @property
    def answer(self) -> str:
        """The correct answer's text, without the end of the turn."""
        return str(self.target + 1) if self.withheld is None else " " + getattr(self.scenes[self.target], self.withheld)

    @property
    def stated_words(self) -> list[int]:
        """For each attribute the index of the word that the caption states, or IGNORED."""
        scene = self.scenes[self.target]
        return [
            IGNORED if attribute == self.withheld else words.index(getattr(scene, attribute))
            for attribute, words in scene.ATTRIBUTES.items()
        ]


def draw_scenes(world: World, candidates: int, generator: random.Random) -> list[Combination]:
    """N distinct training scenes: half the time any, else one scene altered 1, 2 or 3 times."""
    scene, training = world.scene, world.splits.training
    if generator.random() < 0.5:
        return [scene.from_index(index) for index in generator.sample(training, candidates)]
    centre = scene.from_index(generator.choice(training))
    distance = generator.choice((1, 2, 3))
    chosen: dict[int, Combination] = {}
    while len(chosen) < candidates:
        altered = world.altered(centre, distance, generator)
        if altered.index in world.training:
            chosen[altered.index] = altered
    return list(chosen.values())


def draw_question(
    world: World, candidates: int, index_share: float, weights: PositionWeights, generator: random.Random
) -> Question:
    """A question over N images; the target of a content question has a uniform position."""
    scenes = draw_scenes(world, candidates, generator)
    template = generator.randrange(len(world.scene.TEMPLATES))
    if generator.random() >= index_share:
        target = generator.randrange(candidates)
        # Attributes that the caption can withhold and still fit the target only.
        differences = [scenes[target].differing_attributes(scene) for scene in scenes]
        askable = [attribute for attribute in world.scene.ATTRIBUTES if [attribute] not in differences]
        if askable:
            return Question(scenes, target, generator.choice(askable), template)
    target = generator.choices(range(candidates), weights(candidates))[0]
    return Question(scenes, target, None, template)


@dataclass(frozen=True)
class QuestionBatch:
    """Questions over the same number of images, as tensors."""

    input_ids: Tensor
    """[B, S]: prompt and answer, less the end of the turn."""
    answer_labels: Tensor
    """[B, S]: at the last prompt token and the answer's tokens, the token that follows; else IGNORED."""
    caption_labels: Tensor
    """[B, S]: before every caption token, that token; else IGNORED."""
    last: Tensor
    """[B]: column of the last prompt token."""
    stated_words: Tensor
    """[B, A]: word index of every attribute that the caption states; else IGNORED."""
    image_columns: Tensor
    """[4 N]: the columns of the visual tokens."""


class Encoder:
    """Turns questions into tensors, with the processor's chat template and tokenizer."""

    def __init__(self, processor: Qwen2_5_VLProcessor) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_id = processor.image_token_id
        self.end_id = self.tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self.answer_mark = self.tokenizer("\nAnswer: ").input_ids
        self._frame = cache(self._render_frame)

    def prompt(self, text: str, candidates: int) -> str:
        """The prompt with a user's text after N images, with one placeholder per visual token."""
        before, after = self._frame(candidates)
        return before + text + after

    def _render_frame(self, candidates: int) -> tuple[str, str]:
        content = [*[{"type": "image"}] * candidates, {"type": "text", "text": "TEXT"}]
        messages: list[Any] = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        image = self.processor.image_token
        before, after = prompt.replace(image, image * TOKENS_PER_IMAGE).split("TEXT")
        return before, after

    def encode(self, questions: list[Question]) -> QuestionBatch:
        """Questions over the same number of images -> tensors."""
        candidates = len(questions[0].scenes)
        prompts = self.tokenizer([self.prompt(q.text, candidates) for q in questions]).input_ids
        answers = self.tokenizer([q.answer for q in questions]).input_ids
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        input_ids = torch.full((len(questions), width), self.tokenizer.pad_token_id)
        answer_labels = torch.full_like(input_ids, IGNORED)
        caption_labels = torch.full_like(input_ids, IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            tokens = torch.tensor([*prompt, *answer, self.end_id])
            input_ids[row, : len(tokens) - 1] = tokens[:-1]
            answer_labels[row, len(prompt) - 1 : len(tokens) - 1] = tokens[len(prompt) :]
            start, stop = self._caption_columns(prompt)
            caption_labels[row, start - 1 : stop - 1] = tokens[start:stop]
        return QuestionBatch(
            input_ids,
            answer_labels,
            caption_labels,
            last=torch.tensor([len(prompt) - 1 for prompt in prompts]),
            stated_words=torch.tensor([q.stated_words for q in questions]),
            image_columns=(input_ids[0] == self.image_id).nonzero().flatten(),
        )

    def _caption_columns(self, prompt: list[int]) -> tuple[int, int]:
        """First and one past the last column of the caption, which follows the phrase with "Caption:"."""
        stop = prompt.index(self.answer_mark[0])
        start = max(c for c in range(stop) if self.tokenizer.decode([prompt[c]]).endswith("Caption:")) + 1
        return start, stop
