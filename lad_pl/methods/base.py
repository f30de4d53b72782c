"""A method: the prompts that it shows the model, what it reads from a forward pass, and the scores from that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lad_pl.data.permutations import Permutation
from lad_pl.errors import UserError, check_at_least
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import PromptSpec
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.types import Batch, Evidence, PermutedSample, Rows

if TYPE_CHECKING:
    from lad_pl.vlm import PromptEncoder, VisionLanguageModel


@dataclass(frozen=True)
class MethodSettings:
    """The free choices of the methods that have forward passes of their own."""

    averaged_orders: int = 5
    """How many random orders permutation_average_random shows every prompt in, its own among them."""
    sofa_sigma: float = 0.5
    """Weight of bidirectional attention between images in sofa and sofa_paper: 0 is causal, 1 bidirectional. The paper
    chooses it on a validation set."""
    sofa_every: int = 2
    """sofa and sofa_paper soften the first of every so many decoder layers."""
    content_free: str = "N/A"
    """The caption that says nothing, of the contextual_... methods and icr."""
    thought_tokens: int = 1024
    """Longest chain of thought of cot, in tokens."""
    chains: int = 10
    """How many chains of thought self_consistency samples."""
    chain_tokens: int = 512
    """Longest sampled chain of thought, in tokens."""
    chain_temperature: float = 0.7
    """Sampling temperature of the chains."""
    chain_top_k: int | None = 40
    """Tokens of the chains are drawn from this many most probable ones; null draws from all."""
    seed: int = 42
    """Seed of the random orders and of the sampled chains."""

    def __post_init__(self) -> None:
        for name in ("averaged_orders", "sofa_every", "thought_tokens", "chains", "chain_tokens"):
            check_at_least(1, **{f"method.{name}": getattr(self, name)})
        check_at_least(1, **{"method.chain_top_k": self.chain_top_k})
        if not 0 <= self.sofa_sigma <= 1:
            raise UserError(f"method.sofa_sigma is {self.sofa_sigma}; it must lie between 0 and 1.")
        if not 0 < self.chain_temperature < math.inf:
            raise UserError(f"method.chain_temperature is {self.chain_temperature}; it must be positive, and finite.")
        if not self.content_free.strip():
            raise UserError("method.content_free is empty; give a caption that says nothing, such as N/A.")


@dataclass(frozen=True)
class MethodOutput:
    """What a method reads from the forward passes over one batch of B prompts."""

    evidence: Evidence
    forwards: int = 0
    """Forward passes of the language model per prompt."""
    content_free: Evidence | None = None
    """Evidence of the same prompts under a content-free caption."""
    texts: tuple[tuple[str, ...], ...] | None = None
    """The generated texts of each prompt."""
    icr: Tensor | None = None
    """(B, N) scores of In-Context Re-ranking."""

    @staticmethod
    def concat(parts: Sequence[MethodOutput]) -> MethodOutput:
        """The prompts of several parts of a batch, one after the other."""
        content_free = [part.content_free for part in parts if part.content_free is not None]
        texts = [text for part in parts for text in part.texts or ()]
        icr = [part.icr for part in parts if part.icr is not None]
        return MethodOutput(
            Evidence.concat([part.evidence for part in parts]),
            max(part.forwards for part in parts),
            Evidence.concat(content_free) if content_free else None,
            tuple(texts) if texts else None,
            torch.cat(icr) if len(icr) == len(parts) else None,
        )


@dataclass(frozen=True)
class Method:
    """Base of all methods: the prompt as configured, in one forward pass. Methods override what they change."""

    settings: MethodSettings

    name: ClassVar[str]
    """Part of the name of its evidence file."""
    names: ClassVar[tuple[str, ...]] = ()
    """Its rows in the table of results, as ``model.methods`` names them; ``(name,)`` where a class has none."""
    by_id: ClassVar[bool] = False
    """Whether the evidence depends on the sample's id, as that of sampled texts does: their seeds come from it."""

    @property
    def file_name(self) -> str:
        """Part of the name of its evidence file; empty for the one that the readouts share."""
        return self.name

    def prompt(self, prompt: PromptSpec) -> PromptSpec:
        """The prompt that is shown to the model, from the configured one."""
        return prompt

    def orders(self, permutations: Sequence[Permutation]) -> tuple[Permutation, ...]:
        """The orders in which a sample is shown, from the T ``permutations`` under which it is tested."""
        return tuple(permutations)

    def encode(self, encoder: PromptEncoder) -> Callable[[Sequence[PermutedSample]], Batch]:
        """The function that turns samples into model inputs, in the data workers."""
        return encoder

    def recorded_settings(self) -> dict[str, Any]:
        """The settings that the evidence depends on, beside the prompt, as plain values."""
        return {}

    def reads_captions(self, names: Sequence[str], rows: Rows) -> bool:
        """Whether its passes' attention of the caption's tokens is needed.

        Args:
            names: of the readouts and methods that are asked for.
            rows: whose attention the readouts read.
        """
        return False

    def output(self, vlm: VisionLanguageModel, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> MethodOutput:
        """Run the model on a batch that :meth:`encode` made.

        Args:
            vlm: the model.
            batch: B prompts, with their image features.
            trie: the candidates' tokens.
            layers: indices of the decoder layers whose attention is captured.

        Raises:
            UserError: the model cannot do what the method needs.
        """
        return MethodOutput(vlm.evidence(batch, trie, layers))

    def scores(self, records: EvidenceRecords, num_permutations: int, readout: ReadoutSettings) -> dict[str, Tensor]:
        """Scores (P, N) of the P tested prompts, by row name.

        Args:
            records: all that the method has stored.
            num_permutations: T, the tested permutations of a sample.
            readout: the free choices of the correction.
        """
        return dict.fromkeys(self.names, records.evidence.log_probs)

    def choices(self, records: EvidenceRecords, prompt: PromptSpec) -> dict[str, Tensor]:
        """Chosen positions (P,) of rows without scores; :data:`lad_pl.metrics.UNREADABLE` where there is none."""
        return {}


METHODS: dict[str, type[Method]] = {}
"""The class of each method by its row's name."""


def method(kind: type[Method]) -> type[Method]:
    """Register a method under its names."""
    if "names" not in vars(kind):
        kind.names = (kind.name,)
    METHODS.update(dict.fromkeys(kind.names, kind))
    return kind


def check_methods(names: Sequence[str]) -> None:
    """Raise a UserError that lists the known methods if a name is none of them."""
    unknown = [name for name in names if name not in METHODS]
    if unknown and unknown[0] in READOUTS:
        raise UserError(f"'{unknown[0]}' needs no forward passes of its own; name it in model.readouts.")
    if unknown:
        raise UserError(f"'{unknown[0]}' is not a method; choose from {', '.join(METHODS)}.")


class DirectAnswer(Method):
    """The prompt as configured; every readout is computed from its evidence."""

    name = "plain"
    file_name = ""

    def reads_captions(self, names: Sequence[str], rows: Rows) -> bool:
        """Whether a readout does."""
        return rows != "last" or any(READOUTS[name].captions for name in names if name in READOUTS)


class Forwards:
    """Counts forward passes of the language model, one per prompt."""

    def __init__(self) -> None:
        self.rows = 0

    def per_prompt(self, num_prompts: int) -> int:
        """Forward passes for each of ``num_prompts`` prompts."""
        return self.rows // num_prompts


@contextmanager
def count_forwards(vlm: VisionLanguageModel) -> Iterator[Forwards]:
    """Count the forward passes of a model inside the ``with`` block."""
    count = Forwards()

    def add(module: Any, inputs: Any, options: dict[str, Any]) -> None:
        tokens = options.get("input_ids")
        tokens = options["inputs_embeds"] if tokens is None else tokens
        count.rows += len(tokens)

    handle = vlm.model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
