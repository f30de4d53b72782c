"""Prompts that a user's own code makes with the model's processor: their image spans, and whether they fit.

Only the processor knows which of a prompt's tokens it wrote for which image. While it is watched, that is registered
for every prompt it makes, under the prompt's tokens.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from lad_pl.errors import UserError
from lad_pl.types import PermutedSample, Sample
from lad_pl.vlm.caption import squeezed
from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.spans import ImageBlocks

OFFSETS = "text_replacement_offsets"
"""Field of a processor's output with the texts that it wrote for the images."""


class PromptRegistry:
    """The image blocks of every prompt seen, by the prompt's tokens.

    Args:
        encoder: of the calibration's model and prompt.
        num_candidates: N.
    """

    def __init__(self, encoder: PromptEncoder, num_candidates: int) -> None:
        self._encoder = encoder
        self._tokenizer = encoder.tokenizer
        self.num_candidates = num_candidates
        self._blocks: dict[bytes, ImageBlocks | UserError] = {}

    def remember(self, encoded: Mapping[str, Any]) -> None:
        """Register every prompt in a processor's output that shows images.

        Args:
            encoded: ``input_ids``, ``text_replacement_offsets`` and, where there is padding, ``attention_mask``.
        """
        masks = encoded.get("attention_mask")
        for number, replaced in enumerate(encoded.get(OFFSETS) or ()):
            replacements = [entry["replacement"] for entry in replaced if entry["type"] == "image"]
            if not replacements:
                continue
            ids = torch.as_tensor(encoded["input_ids"][number]).cpu()
            ids = self.unpadded(ids if masks is None else ids[torch.as_tensor(masks[number]).cpu().bool()])
            try:
                self._blocks[_key(ids)] = self._checked(ids, self._encoder.spans.locate(ids, replacements))
            except UserError as error:  # raised once the prompt is to be debiased
                self._blocks[_key(ids)] = error

    def find(self, input_ids: Tensor) -> ImageBlocks | UserError | None:
        """The image blocks of a prompt (S,), padded on the left or not.

        Returns:
            a UserError if the prompt does not fit the calibration; None if it is not registered.
        """
        return self._blocks.get(_key(self.unpadded(input_ids.cpu())))

    def positions(self, input_ids: Tensor, blocks: ImageBlocks) -> Tensor:
        """(S,) position of the image that each token of a prompt without padding belongs to, or -1."""
        return self._encoder.spans.positions(input_ids, blocks, self._encoder.prompt.spans)

    def caption_tokens(self, input_ids: Tensor, blocks: ImageBlocks) -> Tensor:
        """(S,) which tokens of a prompt without padding hold characters of its caption; none if that cannot be told."""
        around = self._encoder.around_caption(self.num_candidates)
        return self._encoder.caption_between(input_ids.tolist(), blocks.extents[-1][1], around)

    def unpadded(self, input_ids: Tensor) -> Tensor:
        """A prompt (S,) without its padding on the left."""
        tokenizer = self._tokenizer
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        tokens = (input_ids != padding).nonzero()
        return input_ids[int(tokens[0]) :] if len(tokens) else input_ids

    def _checked(self, ids: Tensor, blocks: ImageBlocks) -> ImageBlocks:
        """The blocks, if number of images, text and image size are the calibration's, as far as tokens show."""
        if len(blocks.visual) != self.num_candidates:
            raise UserError(
                f"The calibration is for {self.num_candidates} images, the prompt has {len(blocks.visual)}."
            )
        before, after = self._text
        written = squeezed(self._tokenizer.decode(ids[blocks.extents[-1][1] :]))
        if not written.endswith(after) or before not in written.removesuffix(after):
            raise UserError(
                "The prompt's text is not the calibration's: put text(caption) after the images, in one user turn, "
                "with add_generation_prompt=True and the calibration's chat_template_kwargs."
            )
        side = self._encoder.prompt.image_size
        if side is not None and blocks.visual != self._visual_tokens:
            raise UserError(
                f"The images of the prompt have {_listed(blocks.visual)} visual tokens, those of the calibration had "
                f"{_listed(self._visual_tokens)}: resize them to {side} x {side} and use the calibration's "
                "images_kwargs, or let encode(images, caption) make the prompt."
            )
        return blocks

    @functools.cached_property
    def _text(self) -> tuple[str, str]:
        """The text between last image and caption, and after the caption; without whitespace, which templates trim."""
        caption = "CAPTION"
        text = self._encoder.prompt.text(caption, self.num_candidates)
        chat = self._encoder.chat(self._encoder.turns([{"type": "image"}] * self.num_candidates, text))
        placeholder = str(self._encoder.processor.image_token)  # type: ignore[attr-defined]
        before, _, after = chat.rpartition(placeholder)[2].rpartition(caption)
        return self._encoder.as_decoded(before), self._encoder.as_decoded(after)

    @functools.cached_property
    def _visual_tokens(self) -> tuple[int, ...]:
        """Number of visual tokens of each of N images of the calibration's size."""
        side = self._encoder.prompt.image_size
        assert side is not None
        order = tuple(range(self.num_candidates))
        sample = Sample("blank", tuple(map(str, order)), "x", None)
        blank = PermutedSample(sample, 0, (order,), (Image.new("RGB", (side, side)),) * self.num_candidates)
        return self._encoder([blank]).visual_tokens


@contextmanager
def watched(
    processor: ProcessorMixin, remember: Callable[[Mapping[str, Any]], None], template: Callable[[], str | None]
) -> Iterator[None]:
    """Pass every output of ``processor`` to ``remember``, with the texts that it wrote for the images.

    The processor's class is replaced by a subclass, because Python looks ``__call__`` up on the class only.

    Args:
        processor: of the prompts.
        remember: takes the processor's outputs.
        template: gives the chat template that replaces the processor's own; None to keep it.
    """
    original = type(processor)

    @functools.wraps(original.__call__)
    def remembered(self: Any, *arguments: Any, return_text_replacement_offsets: bool = False, **options: Any) -> Any:
        encoded = original.__call__(self, *arguments, return_text_replacement_offsets=True, **options)
        remember(encoded)
        if not return_text_replacement_offsets:
            encoded.pop(OFFSETS, None)
        return encoded

    @functools.wraps(original.apply_chat_template)
    def rendered(self: Any, conversation: Any, chat_template: str | None = None, **options: Any) -> Any:
        return original.apply_chat_template(self, conversation, chat_template or template(), **options)

    named = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    replaced = {"__call__": remembered, "apply_chat_template": rendered, **named}
    processor.__class__ = type(original.__name__, (original,), replaced)
    try:
        yield
    finally:
        processor.__class__ = original


def _key(input_ids: Tensor) -> bytes:
    return hashlib.blake2b(input_ids.to(torch.int64).numpy().tobytes(), digest_size=16).digest()


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
