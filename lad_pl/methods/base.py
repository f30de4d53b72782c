"""A pass: one way of asking the model, and what its stored answers come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lad_pl.data.permutations import Permutation
from lad_pl.errors import UserError
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import PromptSpec
from lad_pl.readouts import ReadoutSettings
from lad_pl.types import Batch, Evidence, PermutedSample
from lad_pl.vlm import PromptEncoder, VisionLanguageModel

PLAIN = "plain"
"""The pass that puts the prompt as configured; every readout rests on it."""


@dataclass(frozen=True)
class MethodSettings:
    """The free choices of the methods that have passes of their own."""

    averaged_orders: int = 5
    """How many random orders permutation_average_random shows every prompt in, its own among them."""
    sofa_sigma: float = 0.5
    """Weight of bidirectional attention between images in sofa and sofa_paper: 0 is causal, 1 bidirectional. The paper
    chooses it on a validation set."""
    sofa_every: int = 2
    """sofa and sofa_paper soften the first of every so many decoder layers."""
    content_free: str = "N/A"
    """The caption that says nothing, of the contextual_... methods."""
    thought_tokens: int = 1024
    """Longest chain of thought of cot, in tokens."""
    chains: int = 10
    """How many chains of thought self_consistency samples."""
    chain_tokens: int = 512
    """Longest of them, in tokens."""
    chain_temperature: float = 0.7
    """Their sampling temperature."""
    chain_top_k: int | None = 40
    """Each of their tokens is drawn from this many most probable ones; null draws from all."""
    seed: int = 42
    """Of what is drawn: the random orders, and the words of sampled chains."""

    def __post_init__(self) -> None:
        for name in ("averaged_orders", "sofa_every", "thought_tokens", "chains", "chain_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"method.{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.content_free.strip():
            raise UserError("method.content_free is empty; give a caption that says nothing, such as N/A.")


@dataclass(frozen=True)
class MethodOutput:
    """What one batch of a pass yields; the fields are those of :func:`lad_pl.evidence.table.of_batch`."""

    evidence: Evidence
    forwards: int = 0
    """How often the language model ran for each prompt; counted by whoever asks for it."""
    free: Evidence | None = None
    texts: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True)
class Pass:
    """The prompt as configured. Other passes differ from it where they must."""

    settings: MethodSettings

    name: ClassVar[str] = PLAIN
    methods: ClassVar[tuple[str, ...]] = ()
    """The methods that rest on this pass, beside the readouts."""

    def prompt(self, prompt: PromptSpec) -> PromptSpec:
        """The prompt that this pass puts to the model."""
        return prompt

    def orders(self, permutations: Sequence[Permutation]) -> tuple[Permutation, ...]:
        """The orders in which a sample is shown for the T ``permutations`` of it that are tested."""
        return tuple(permutations)

    def encode(self, encoder: PromptEncoder) -> Callable[[Sequence[PermutedSample]], Any]:
        """The function that makes model inputs of samples, in the data workers."""
        return encoder

    def choices_made(self) -> dict[str, Any]:
        """The settings that this pass's evidence depends on, beside the prompt; plain values."""
        return {}

    def measure(self, vlm: VisionLanguageModel, batch: Any, trie: AnswerTrie, layers: Sequence[int]) -> MethodOutput:
        """Run the model on what :meth:`encode` made.

        Raises:
            UserError: the model cannot do what the pass needs.
        """
        return MethodOutput(vlm.evidence(batch, trie, layers))

    def scores(self, prompts: EvidenceRecords, num_permutations: int, readout: ReadoutSettings) -> dict[str, Tensor]:
        """Scores (P, N) of this pass's methods for the P tested prompts.

        Args:
            prompts: all that the pass has stored.
            num_permutations: T, the tested permutations of a sample.
            readout: the free choices of the correction.
        """
        return dict.fromkeys(self.methods, prompts.evidence.log_probs)

    def choices(self, prompts: EvidenceRecords, prompt: PromptSpec) -> dict[str, Tensor]:
        """Chosen positions (P,) of the methods of this pass that have no scores; lad_pl.metrics.UNREADABLE for none."""
        return {}


class Forwards:
    """How often the language model has run, per prompt."""

    def __init__(self) -> None:
        self.rows = 0

    def per_prompt(self, num_prompts: int) -> int:
        """Rows that went through the model for each of so many prompts."""
        return self.rows // num_prompts


@contextmanager
def counted(vlm: VisionLanguageModel) -> Iterator[Forwards]:
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


def plain_batch(batch: Any) -> Batch:
    """The prompts themselves, where a pass's batch holds something beside them."""
    return batch[0] if isinstance(batch, tuple) else batch
