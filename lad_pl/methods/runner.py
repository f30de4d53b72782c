"""Runs one method over a stage and stores its evidence."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lad_pl.data.batches import LoaderSpec
from lad_pl.data.permutations import Permutation
from lad_pl.errors import UserError
from lad_pl.evidence.store import EvidenceStore
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.methods.base import Method, MethodOutput, count_forwards
from lad_pl.types import Batch
from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.model import VisionLanguageModel
from lad_pl.vlm.oom_split import OomSplitter
from lad_pl.vlm.prompt_length import PromptLengths


class MethodRunner:
    """A method with the model, its prompt encoder and its evidence store.

    Args:
        method: the method.
        vlm: the model.
        encoder: of the method's prompt.
        layers: indices of the decoder layers whose attention is captured.
        orders: the orders in which the method shows every sample.
        store: of the method's evidence.
        max_tokens: the most tokens, padding included, of one forward pass of the language model.

    Raises:
        UserError: the tokenizer cannot tell two identifiers apart.
    """

    def __init__(
        self,
        method: Method,
        vlm: VisionLanguageModel,
        encoder: PromptEncoder,
        layers: Sequence[int],
        orders: tuple[Permutation, ...],
        store: EvidenceStore,
        max_tokens: float = math.inf,
    ) -> None:
        self.method, self.vlm, self.encoder, self.layers = method, vlm, encoder, layers
        self.orders, self.store = orders, store
        self.trie = encoder.answer_trie(len(orders[0]))
        self._shared = vlm.tensor_parallel.size > 1
        self._samples = OomSplitter(
            Batch.samples, "the images of {} samples", "one sample's images fit", may_split=not self._shared
        )
        self._prompts = OomSplitter(Batch.part, "{} prompts", "one prompt fits", max_tokens, not self._shared)

    def take_up(self, related: Sequence[Path]) -> frozenset[int]:
        """Check what is stored, and copy what related stores have of the same samples; on one process.

        Args:
            related: paths of the other stores.

        Returns:
            Indices of the samples whose evidence is stored.

        Raises:
            UserError: there is evidence of another configuration.
        """
        self.store.check()
        self.store.adopt(related, len(self.orders))
        return frozenset(self.store.done(len(self.orders)))

    def settings(self) -> dict[str, Any]:
        """The settings that the evidence depends on and that the method decides, as plain values."""
        return {"prompt": self.encoder.prompt.settings(), **self.method.recorded_settings()}

    def loader_spec(self, done: frozenset[int], replica: tuple[int, int]) -> LoaderSpec:
        """The dataloader that the method needs.

        Args:
            done: indices of the samples to leave out.
            replica: number of model replicas, and which of them this process holds.
        """
        return LoaderSpec(
            orders=self.orders,
            encode=self.method.encode(self.encoder),
            lengths=PromptLengths(self.encoder),
            done=done,
            replica=replica,
            image_size=self.encoder.prompt.image_size,
        )

    def run(self, batch: Batch, rank: int) -> None:
        """Run the method on a batch and store the evidence.

        Raises:
            UserError: the model's output is not finite, or a single prompt does not fit into memory.
        """
        start = time.perf_counter()
        output = MethodOutput.concat(list(self._outputs(batch)))
        _check_finite(output, batch)  # waits for the device, and so belongs to the time
        if rank == 0 or not self._shared:
            seconds = time.perf_counter() - start
            self.store.append(EvidenceRecords.from_batch(batch, seconds=seconds, **vars(output)), rank)

    def _outputs(self, batch: Batch) -> Iterator[MethodOutput]:
        """Of as many samples and prompts at a time as fit into memory."""
        for part in self._samples.map(self.vlm.with_features, batch, count=len(batch.vision)):
            width = part.tokens["input_ids"].shape[1]
            yield from self._prompts.map(self._forward, part, count=len(part), size=width)
            del part  # its features, before the vision tower runs on the next part

    def _forward(self, batch: Batch) -> MethodOutput:
        with count_forwards(self.vlm) as forwards:
            output = self.method.output(self.vlm, batch, self.trie, self.layers)
        return replace(output, forwards=forwards.per_prompt(len(batch)))


def _check_finite(output: MethodOutput, batch: Batch) -> None:
    for evidence in filter(None, (output.evidence, output.content_free)):
        finite = evidence.is_finite()
        if not finite.all():
            culprit = batch.ids[int((~finite).nonzero()[0])]
            raise UserError(
                f"Sample {culprit}: the model's output is not finite; try --model.vlm.dtype float32 or bfloat16."
            )
