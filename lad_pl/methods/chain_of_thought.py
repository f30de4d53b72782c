"""Chain of thought and self-consistency: the model generates text, and the answer is parsed from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lad_pl.evidence.table import EvidenceRecords, no_evidence
from lad_pl.methods.base import Method, MethodOutput, method
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


@method
class ChainOfThought(Method):
    """One greedy chain of thought per prompt; the answer is what follows it."""

    name = "cot"
    template = COT_TEMPLATE

    def decoding(self) -> Decoding:
        """How the text is generated."""
        return Decoding(self.settings.thought_tokens)

    def prompt(self, prompt: PromptSpec) -> PromptSpec:
        """A prompt that asks for a chain of thought, in place of the configured one."""
        return replace(prompt, template=self.template)

    def recorded_settings(self) -> dict[str, Any]:
        """How the text is generated."""
        return vars(self.decoding())

    def output(self, vlm: VisionLanguageModel, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> MethodOutput:
        """The generated texts."""
        return MethodOutput(no_evidence(len(batch)), texts=generate(vlm, batch, self.decoding()))

    def scores(self, *args: Any) -> dict[str, Tensor]:
        """Generated text has none."""
        return {}

    def choices(self, records: EvidenceRecords, prompt: PromptSpec) -> dict[str, Tensor]:
        """The majority vote of each prompt's chains."""
        assert records.texts is not None
        names = identifiers(prompt.identifiers, records.num_candidates)
        read = [majority([read_choice(text, names, prompt.identifiers) for text in chains]) for chains in records.texts]
        choices = torch.tensor([UNREADABLE if choice is None else choice for choice in read])
        return dict.fromkeys(self.names, choices)


@method
class SelfConsistency(ChainOfThought):
    """Several sampled chains of thought per prompt; majority vote of those that end in an answer."""

    name = "self_consistency"
    by_id = True
    template = CONSISTENCY_TEMPLATE

    def decoding(self) -> Decoding:
        """How the texts are sampled."""
        chosen = self.settings
        return Decoding(
            chosen.chain_tokens, chosen.chains, chosen.chain_temperature, chosen.chain_top_k, seed=chosen.seed
        )
