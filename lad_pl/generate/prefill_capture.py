"""Evidence from the forward passes of a user's own ``model.generate``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lad_pl.errors import UserError
from lad_pl.evidence.table import as_stored
from lad_pl.generate.prompt_registry import PromptRegistry
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.types import Evidence
from lad_pl.vlm.capture import AttentionMass
from lad_pl.vlm.context import check_context
from lad_pl.vlm.model import VisionLanguageModel
from lad_pl.vlm.spans import ImageBlocks


@dataclass
class Prefill:
    """The forward pass over the prompts of one ``generate`` call."""

    input_ids: Tensor
    """(B, S), padded on the left."""
    problem: UserError | None = None
    """Why a prompt cannot be debiased."""
    mass: AttentionMass | None = None
    log_probs: Tensor | None = None
    """(B, N) log-probabilities of the candidates, uncorrected."""
    steps: int = 0
    """Number of answer tokens generated so far."""

    @property
    def length(self) -> int:
        """S."""
        return self.input_ids.shape[1]

    def begins(self, input_ids: Tensor) -> bool:
        """Whether the sequences (B, S + k) begin with these prompts."""
        return len(input_ids) == len(self.input_ids) and torch.equal(input_ids[:, : self.length], self.input_ids)

    def evidence(self) -> Evidence:
        """The evidence that ``predict`` would store for these prompts.

        Raises:
            UserError: a prompt cannot be debiased.
        """
        if self.problem is not None:
            raise self.problem
        assert self.mass is not None
        assert self.log_probs is not None
        return as_stored(Evidence.from_heads(self.log_probs, self.mass.stacked(), self.mass.of_captions()))


class PrefillCapture:
    """Reads the evidence of registered prompts from the model's own forward passes over them.

    Args:
        vlm: the model.
        registry: the prompts to watch for.
        trie: the candidates' tokens.
        layers: indices of the decoder layers to read attention from.
    """

    def __init__(
        self, vlm: VisionLanguageModel, registry: PromptRegistry, trie: AnswerTrie, layers: Sequence[int]
    ) -> None:
        self._vlm, self._registry, self._trie, self._layers = vlm, registry, trie, layers
        self.prefill: Prefill | None = None
        """The latest forward pass over registered prompts; None after a pass over others."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap the model's ``forward`` while the ``with`` block runs."""
        model = self._vlm.model
        original, own = model.forward, vars(model).get("forward")

        @functools.wraps(original)
        def forward(*arguments: Any, **options: Any) -> Any:
            return original(*arguments, **options) if arguments else self._forward(original, options)

        model.forward = forward
        try:
            yield
        finally:
            self.prefill = None
            if own is None:
                del model.forward
            else:  # accelerate's wrapper, of a model on several devices
                model.forward = own

    def _forward(self, forward: Callable[..., Any], options: dict[str, Any]) -> Any:
        """The model's forward pass; over registered prompts it leaves their evidence in ``self.prefill``."""
        input_ids, cache = options.get("input_ids"), options.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            return forward(**options)
        found = [None] if input_ids is None else [self._registry.find(row) for row in input_ids]
        if input_ids is None or None in found:
            if self.prefill is not None and (input_ids is None or not self.prefill.begins(input_ids)):
                self.prefill = None  # not merely the same prompts with one more token, generated without a cache
            return forward(**options)
        self.prefill = Prefill(input_ids, next((item for item in found if isinstance(item, UserError)), None))
        if not (cache is None or isinstance(cache, DynamicCache)):
            self.prefill.problem = UserError(
                f"Prompts cannot be debiased on a {type(cache).__name__}; leave generate its default cache "
                "(cache_implementation)."
            )
        if self.prefill.problem is not None:
            return forward(**options)
        return self._read(forward, options, self.prefill, [item for item in found if isinstance(item, ImageBlocks)])

    def _read(
        self, forward: Callable[..., Any], options: dict[str, Any], prefill: Prefill, blocks: Sequence[ImageBlocks]
    ) -> Any:
        """The forward pass over prompts, its output unchanged; leaves their evidence in ``prefill``."""
        starts = [len(ids) - len(self._registry.unpadded(ids)) for ids in prefill.input_ids]
        lengths = torch.tensor([prefill.length - start for start in starts])
        check_context(self._vlm.model.config, lengths, self._registry.num_candidates, None, self._trie.depth)
        positions = torch.full_like(prefill.input_ids, -1)
        captions = torch.zeros_like(prefill.input_ids, dtype=torch.bool)
        for row, (start, images) in enumerate(zip(starts, blocks, strict=True)):
            ids = prefill.input_ids[row, start:]
            positions[row, start:] = self._registry.positions(ids, images)
            captions[row, start:] = self._registry.caption_tokens(ids, images)
        cacheless = self._trie.needs_continuation and options.get("past_key_values") is None
        if cacheless:
            options = {**options, "past_key_values": self._cache(), "use_cache": True}
        with self._vlm.capture(self._layers, positions, self._registry.num_candidates, captions) as prefill.mass:
            output = forward(**options)
        prefill.log_probs = self._candidates(output, options, starts, prefill)
        if cacheless:
            return type(output)(**{name: value for name, value in output.items() if name != "past_key_values"})
        return output

    def _cache(self) -> DynamicCache:
        return DynamicCache(config=self._vlm.model.config.get_text_config(decoder=True))

    def _candidates(self, output: Any, options: dict[str, Any], starts: Sequence[int], prefill: Prefill) -> Tensor:
        """(B, N) log-probabilities of the candidates; a copy of the cache serves those of several tokens."""
        if not self._trie.needs_continuation:
            return self._trie.log_probs(lambda _: output.logits[:, -1])
        mask = torch.ones_like(prefill.input_ids)
        for row, start in enumerate(starts):
            mask[row, :start] = 0
        positions = options.get("position_ids")
        if positions is None:  # a model that takes no position ids counts all tokens, also padding
            positions = torch.arange(prefill.length, device=mask.device).expand_as(mask)
        copied = SimpleNamespace(logits=output.logits, past_key_values=copy.deepcopy(output.past_key_values))
        copied.past_key_values.activate_past_recording()  # lets sliding windows be rolled back
        inputs = {"attention_mask": mask, "position_ids": positions}
        return self._trie.log_probs(lambda prefix: self._vlm.logits_after(prefix, copied, inputs))
