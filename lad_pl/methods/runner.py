"""One pass of one stage: what asks the model, and keeps what it tells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lad_pl.errors import UserError
from lad_pl.evidence.store import EvidenceStore
from lad_pl.evidence.table import of_batch
from lad_pl.methods import Pass, counted, plain_batch
from lad_pl.methods.base import MethodOutput
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.types import Batch, Evidence
from lad_pl.vlm import PromptEncoder, VisionLanguageModel
from lad_pl.vlm.oom_split import OomSplitter, none_if_out_of_memory


@dataclass(frozen=True)
class MethodRunner:
    """A pass with all that it takes to make it."""

    way: Pass
    vlm: VisionLanguageModel
    encoder: PromptEncoder
    """The pass's input side."""
    trie: AnswerTrie
    layers: Sequence[int]
    """The decoder layers whose attention is read."""
    store: EvidenceStore
    fitting: OomSplitter
    num_orders: int
    """Orders in which this pass shows every sample."""

    @property
    def done(self) -> set[int]:
        """Numbers of the samples whose evidence is stored already."""
        return self.store.done(self.num_orders)

    def measure(self, batch: Any, rank: int) -> None:
        """Store what the model tells about a batch that the pass's encoder made.

        Raises:
            UserError: it tells something that is not finite, or one prompt alone does not fit into memory.
        """
        start = time.perf_counter()
        if self.vlm.tensor_parallel.size == 1:
            measured = self.fitting(self._seen, self._told, batch)
        else:
            measured = none_if_out_of_memory(lambda whole: self._told(self._seen(whole)), batch)
            if measured is None:  # a process that went on with half a batch would meet the others at another place
                raise UserError("Out of memory; make batches smaller (data.batch_size, data.batch_tokens).")
        prompts = plain_batch(batch)
        for evidence in (measured.evidence, measured.free):
            _check_finite(evidence, prompts)  # waits for the device, and so belongs to the time
        if rank == 0 or self.vlm.tensor_parallel.size == 1:
            self.store.append(of_batch(prompts, seconds=time.perf_counter() - start, **vars(measured)), rank)

    def _seen(self, batch: Any) -> Any:
        """The batch with its images' features: parts of it share them."""
        if not isinstance(batch, tuple):
            return self.vlm.with_features(batch)
        seen = self.vlm.with_features(batch[0])
        return seen, *(replace(other, vision=seen.vision, features=seen.features) for other in batch[1:])

    def _told(self, batch: Any) -> MethodOutput:
        with counted(self.vlm) as forwards:
            measured = self.way.measure(self.vlm, batch, self.trie, self.layers)
        return replace(measured, forwards=forwards.per_prompt(len(plain_batch(batch))))


def _check_finite(evidence: Evidence | None, batch: Batch) -> None:
    if evidence is None:
        return
    finite = evidence.log_probs.isfinite().all(1) & evidence.attention.isfinite().flatten(1).all(1)
    if not finite.all():
        culprit = batch.ids[int((~finite).nonzero()[0])]
        raise UserError(
            f"Sample {culprit}: the model's output is not finite; try --model.vlm.dtype float32 or bfloat16."
        )
