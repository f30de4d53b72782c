"""Methods that let the model think aloud, and read its answer out of what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lad_pl.evidence.table import EvidenceRecords, no_evidence
from lad_pl.methods.base import MethodOutput, Pass
from lad_pl.metrics import UNREADABLE
from lad_pl.prompts.answer_parsing import majority, read_choice
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import PromptSpec, identifiers
from lad_pl.types import Batch
from lad_pl.vlm import VisionLanguageModel
from lad_pl.vlm.generation import Decoding, generate

_QUESTION = (
    "Given {n} images indexed from {first} to {last}, identify the image that best matches the provided caption. "
)
COT_TEMPLATE = (
    _QUESTION + "Think step by step inside <think></think>, then respond with the index number only.\n"
    "Caption: {caption}\nAnswer: "
)
CONSISTENCY_TEMPLATE = (
    _QUESTION + 'Think step by step, and end with "The answer is <index>", <index> being the index number.\n'
    "Caption: {caption}\nAnswer: "
)


class ChainOfThought(Pass):
    """One chain of thought per prompt, the most probable token each time; the answer is what follows the thoughts."""

    name = "cot"
    methods = ("cot",)
    template = COT_TEMPLATE

    def decoding(self) -> Decoding:
        """How the text is generated."""
        return Decoding(self.settings.thought_tokens)

    def prompt(self, prompt: PromptSpec) -> PromptSpec:
        """Words that ask for thoughts, in place of the configured ones."""
        return replace(prompt, template=self.template)

    def choices_made(self) -> dict[str, Any]:
        """How the text is generated."""
        return vars(self.decoding())

    def measure(self, vlm: VisionLanguageModel, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> MethodOutput:
        """The model's words."""
        return MethodOutput(no_evidence(len(batch)), texts=generate(vlm, batch, self.decoding()))

    def scores(self, *args: Any) -> dict[str, Tensor]:
        """Words have none."""
        return {}

    def choices(self, prompts: EvidenceRecords, prompt: PromptSpec) -> dict[str, Tensor]:
        """What most of a prompt's chains answer."""
        assert prompts.texts is not None
        names = identifiers(prompt.identifiers, prompts.num_candidates)
        read = [majority([read_choice(text, names, prompt.identifiers) for text in chains]) for chains in prompts.texts]
        choices = torch.tensor([UNREADABLE if choice is None else choice for choice in read])
        return dict.fromkeys(self.methods, choices)


class SelfConsistency(ChainOfThought):
    """Several sampled chains of thought per prompt; the majority of those that end in an answer."""

    name = "self_consistency"
    methods = ("self_consistency",)
    template = CONSISTENCY_TEMPLATE

    def decoding(self) -> Decoding:
        """How the texts are sampled."""
        chosen = self.settings
        return Decoding(
            chosen.chain_tokens, chosen.chains, chosen.chain_temperature, chosen.chain_top_k, seed=chosen.seed
        )
