"""From permuted samples to model inputs, in the data workers: one processor call per sample, not per permutation.

The processor sees a sample once, with its images in the annotation's order. The other permutations are made by moving
the images' blocks of tokens. That is exact where the text between the images is the same in any order; a processor
that numbers its images, or comments on some of them, is called for every permutation instead.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import ProcessorMixin

from lad_pl.answers import AnswerTrie
from lad_pl.errors import UserError, first_line
from lad_pl.prompts import PromptSpec, identifiers
from lad_pl.provenance import short_digest
from lad_pl.types import Batch, PermutedSample
from lad_pl.vlm.spans import ImageBlocks, ImageSpans

Fields = dict[str, Any]


class PromptEncoder:
    """Turns :class:`PermutedSample` records into a :class:`Batch`; holds no weights, so workers can carry it.

    Args:
        processor: the model's processor.
        image_token: id of the visual token, which image features replace.
        prompt: the prompt's words and image handling.

    Raises:
        UserError: the prompt sets a variable that the model's chat template does not have.
    """

    def __init__(self, processor: ProcessorMixin, image_token: int, prompt: PromptSpec) -> None:
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self.spans = ImageSpans(self.tokenizer, image_token, getattr(processor, "image_token", None))
        self.prompt = prompt
        self._check_template_variables()

    def _check_template_variables(self) -> None:
        taken = {"messages", *inspect.signature(self.processor.apply_chat_template).parameters}
        for name in self.prompt.chat_template_kwargs:
            if name in taken or not re.search(rf"\b{re.escape(name)}\b", str(self.processor.chat_template)):
                raise UserError(
                    f"prompt.chat_template_kwargs names '{name}', which is no variable of this model's chat template "
                    "that a prompt may set."
                )

    def __call__(self, items: Sequence[PermutedSample]) -> Batch:
        """Encode a list of samples, each under all of its permutations.

        Raises:
            UserError: the processor refuses a sample, or its images' tokens cannot be found.
        """
        rows: list[Fields] = []
        positions: list[Tensor] = []
        vision: list[Fields] = []
        visual_tokens: list[int] = []
        image_rows: list[Tensor] = []
        for number, item in enumerate(items):
            annotated = tuple(range(item.sample.num_candidates))
            tokens, images, blocks = self._process(item, annotated)
            for permutation in item.permutations:
                if blocks.movable or permutation == annotated:
                    order, moved = _move_blocks(blocks, permutation, len(tokens["input_ids"]))
                    row = {name: values[order] for name, values in tokens.items()}
                else:
                    row, _, moved = self._process(item, permutation)
                    if moved.visual != tuple(blocks.visual[source] for source in permutation):
                        raise UserError(
                            f"Sample {item.sample.id}: the processor gives an image another number of tokens in "
                            "another place; this model family is not supported."
                        )
                rows.append(row)
                positions.append(self.spans.positions(row["input_ids"], moved, self.prompt.spans))
                image_rows.append(torch.tensor(permutation) + number * len(permutation))
            vision.append(images)
            visual_tokens += blocks.visual
        tokenizer = self.tokenizer
        filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        padding = {"input_ids": filler}
        return Batch(
            tokens={name: _left_pad([row[name] for row in rows], padding.get(name, 0)) for name in rows[0]},
            position_of_token=_left_pad(positions, -1),
            vision=tuple(vision),
            visual_tokens=tuple(visual_tokens),
            image_rows=torch.stack(image_rows),
            permutations=torch.tensor([p for item in items for p in item.permutations]),
            targets=torch.tensor([_position_of_target(item, p) for item in items for p in item.permutations]),
            groups=torch.tensor([item.index for item in items for _ in item.permutations]),
            ids=tuple(item.sample.id for item in items for _ in item.permutations),
        )

    def answer_trie(self, num_candidates: int) -> AnswerTrie:
        """The identifiers' tokens as they follow the generation prompt.

        Raises:
            UserError: the tokenizer cannot tell two identifiers apart, or merges one with the prompt.
        """
        names = identifiers(self.prompt.identifiers, num_candidates)
        before = self._chat(self._turns([], self.prompt.text("x", num_candidates)))
        base = self._ids(before)
        tokens = []
        for name in names:
            ids = self._ids(before + name)
            if ids[: len(base)] != base:
                raise UserError(f"The tokenizer merges the identifier '{name}' with the prompt; use other identifiers.")
            tokens.append(ids[len(base) :])
        return AnswerTrie.build(names, tokens, self._end_of_turn)

    def fingerprint(self) -> str:
        """A short digest of the chat template's words and of what the image processor does."""
        settings = self.processor.image_processor.to_dict()
        kept = {name: value for name, value in settings.items() if not name.startswith("_") and "class" not in name}
        return short_digest([self._chat(self._turns([], "x")), kept])

    def _process(self, item: PermutedSample, permutation: Sequence[int]) -> tuple[Fields, Fields, ImageBlocks]:
        """Token fields (S,), image fields and image blocks of one sample in one order of its images."""
        text = self.prompt.text(item.sample.caption, item.sample.num_candidates)
        images = [{"type": "image", "image": item.images[index]} for index in permutation]
        try:
            fields = self._tokenized(images, text)
            replaced = fields.pop("text_replacement_offsets", [[]])[0]
            shape = fields["input_ids"].shape
            tokens = {name: values[0] for name, values in fields.items() if _is_shaped(values, shape)}
            blocks = self.spans.locate(tokens["input_ids"], [entry["replacement"] for entry in replaced])
        except UserError as error:
            raise UserError(f"Sample {item.sample.id}: {error}") from error
        return tokens, {name: values for name, values in fields.items() if name not in tokens}, blocks

    def _tokenized(self, images: list[dict[str, Any]], text: str) -> Any:
        control = self.spans.control_token_in(f"{self.prompt.system or ''} {text}")
        try:
            return self.processor.apply_chat_template(
                self._turns(images, text),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                # A caption that spells <|image_pad|> stays text; not every processor can promise that.
                sanitize_control_tokens=control is not None,
                processor_kwargs={
                    "return_text_replacement_offsets": True,
                    "images_kwargs": dict(self.prompt.images_kwargs),
                },
                **self.prompt.chat_template_kwargs,
            )
        except Exception as error:  # whatever a template or a processor of some family may think of
            spelt = "" if control is None else f" (its text spells '{control}', one of the model's own tokens)"
            raise UserError(f"the model's processor refuses it{spelt}: {first_line(error)}.") from error

    def _turns(self, images: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        turns = [_turn("user", [*images, _words(text)])]
        return turns if self.prompt.system is None else [_turn("system", [_words(self.prompt.system)]), *turns]

    def _chat(self, turns: list[dict[str, Any]], answering: bool = True) -> str:
        """What the chat template makes of a conversation; ``answering``: up to where the assistant begins."""
        options = self.prompt.chat_template_kwargs
        try:
            return self.processor.apply_chat_template(turns, add_generation_prompt=answering, **options)
        except Exception as error:  # templates are programs of their own
            raise UserError(f"The model's chat template refuses the prompt: {first_line(error)}.") from error

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _end_of_turn(self) -> int:
        """The token that closes an assistant's words; where the template closes none, what opens the next turn."""
        marker = "ANSWER"
        turns = [*self._turns([], "x"), _turn("assistant", [_words(marker)])]
        for conversation in (turns, [*turns, _turn("user", [_words("x")])]):
            text = self._chat(conversation, answering=False)
            token = self.spans.first_marker(self._ids(text.rpartition(marker)[2]))
            if token is not None:
                return token
        return self.tokenizer.eos_token_id


def _turn(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def _words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _position_of_target(item: PermutedSample, permutation: Sequence[int]) -> int:
    return -1 if item.sample.target is None else permutation.index(item.sample.target)


def _is_shaped(values: Any, shape: torch.Size) -> bool:
    return isinstance(values, Tensor) and values.shape == shape


def _move_blocks(blocks: ImageBlocks, permutation: Sequence[int], length: int) -> tuple[Tensor, ImageBlocks]:
    """Source index of every token once the blocks stand in the permuted order, and where they stand then."""
    order: list[int] = []
    moved = []
    fixed_start = 0
    for (start, end), source in zip(blocks.extents, permutation, strict=True):
        order.extend(range(fixed_start, start))
        first, last = blocks.extents[source]
        moved.append((len(order), len(order) + last - first))
        order.extend(range(first, last))
        fixed_start = end
    order.extend(range(fixed_start, length))
    visual = tuple(blocks.visual[source] for source in permutation)
    return torch.tensor(order), replace(blocks, extents=tuple(moved), visual=visual)


def _left_pad(rows: Sequence[Tensor], value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.stack([pad(row, (longest - len(row), 0), value=value) for row in rows])
