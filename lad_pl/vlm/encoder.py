"""From permuted samples to model inputs, in the data workers: one processor call per sample, not per permutation.

The processor sees a sample once, with its images in the annotation's order. The other permutations are made by moving
the images' blocks of tokens. That is exact where the text between the images is the same in any order; a processor
that numbers its images, or comments on some of them, is called for every permutation instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import ProcessorMixin

from lad_pl.errors import UserError, first_line
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import PromptSpec, identifiers
from lad_pl.provenance import short_digest
from lad_pl.types import Batch, PermutedSample
from lad_pl.vlm.caption import MARKER, aligned, caption_spans, squeezed, tokens_between, tokens_of_spans
from lad_pl.vlm.chat_template import ChatTemplate, turn, words
from lad_pl.vlm.content_free import CONTENT_FREE, swap_text
from lad_pl.vlm.spans import ImageBlocks, ImageSpans

Fields = dict[str, Any]

_UNMERGED = ("\n", "x", "0", ".")
"""Characters of each kind, one of which a tokenizer should not merge with the next."""


@dataclass(frozen=True)
class EncodedSample:
    """One sample under its T permutations, before padding."""

    rows: list[Fields]
    """T: token fields (S,)."""
    positions: list[Tensor]
    """T: (S,) position of the image that each token belongs to, or -1."""
    vision: Fields
    """The image processor's output, every image once."""
    visual: tuple[int, ...]
    """Visual tokens of each image, in the annotation's order."""
    captions: list[Tensor]
    """T: (S,) which tokens are the caption's; none where they cannot be told."""
    tail: int
    """Tokens after the last image and its delimiters, which every permutation has in common."""
    text: int
    """Tokens after the last image's own block: the tail, and the delimiters that the chat template writes."""


class PromptEncoder:
    """Turns :class:`PermutedSample` records into a :class:`Batch`; holds no weights, so that workers can unpickle it.

    Args:
        processor: the model's processor.
        image_token: id of the visual token, which image features replace.
        prompt: template, identifiers and image processing.
        date: the day that a chat template which asks for the date is given, as YYYY-MM-DD; None for today.

    Raises:
        UserError: the prompt sets a variable that the model's chat template does not have.
    """

    def __init__(
        self, processor: ProcessorMixin, image_token: int, prompt: PromptSpec, date: str | None = None
    ) -> None:
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        placeholders = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        self.spans = ImageSpans(self.tokenizer, image_token, placeholders)
        self.prompt = prompt
        self.template = ChatTemplate(processor, prompt.chat_template_kwargs, date)
        self._around_caption: dict[int, list[str]] = {}
        self.date = self.template.date_in(self.turns([{"type": "image"}] * 2, prompt.text("x", 2)))
        """The day that the chat template writes into the prompts, as YYYY-MM-DD; None if it writes none."""

    def __call__(self, items: Sequence[PermutedSample]) -> Batch:
        """Encode a list of samples, each under all of its permutations.

        Raises:
            UserError: the processor refuses a sample, or its images' tokens cannot be found.
        """
        return self._batch(items, [self._encode(item) for item in items])

    def with_content_free(self, items: Sequence[PermutedSample], caption: str = CONTENT_FREE) -> Batch:
        """Encode samples, and as ``content_free`` the same prompts with ``caption`` in place of each sample's own.

        The images go through the processor once: only the text after them is tokenised anew. Where that might not give
        what the processor would, the processor is called with the other caption as well.

        Raises:
            UserError: the processor refuses a sample, or its images' tokens cannot be found.
        """
        encoded = [self._encode(item) for item in items]
        free = [self._with_caption(item, own, caption) for item, own in zip(items, encoded, strict=True)]
        return replace(self._batch(items, encoded), content_free=self._batch(items, free))

    def _encode(self, item: PermutedSample) -> EncodedSample:
        """One sample under all of its permutations."""
        annotated = tuple(range(item.sample.num_candidates))
        tokens, vision, blocks = self._process(item, annotated)
        caption = self._caption_tokens(item, tokens["input_ids"], blocks.extents[-1][1])
        rows, positions, captions = [], [], []
        for permutation in item.permutations:
            if blocks.movable or permutation == annotated:
                order, moved = _move_blocks(blocks, permutation, len(tokens["input_ids"]))
                row = {name: values[order] for name, values in tokens.items()}
                captions.append(caption[order])
            else:
                row, _, moved = self._process(item, permutation)
                if moved.visual != tuple(blocks.visual[source] for source in permutation):
                    raise UserError(
                        f"Sample {item.sample.id}: the processor gives an image another number of tokens at "
                        "another position; this model family is not supported."
                    )
                captions.append(self._caption_tokens(item, row["input_ids"], moved.extents[-1][1]))
            rows.append(row)
            positions.append(self.spans.positions(row["input_ids"], moved, self.prompt.spans))
        text = len(tokens["input_ids"]) - blocks.extents[-1][1]
        return EncodedSample(rows, positions, vision, blocks.visual, captions, text - blocks.after, text)

    def _with_caption(self, item: PermutedSample, own: EncodedSample, caption: str) -> EncodedSample:
        """The sample with another caption."""
        other = replace(item, sample=replace(item.sample, caption=caption))
        rows = None if self.spans.control_token_in(caption) else self._swapped(item, other, own)
        if rows is None:
            again = self._encode(other)
            if again.visual != own.visual:
                raise UserError(
                    f"Sample {item.sample.id}: the processor gives an image another number of tokens beside another "
                    "caption; this model family is not supported."
                )
            return replace(again, vision=own.vision)
        positions = [_with_text(before, row) for before, row in zip(own.positions, rows, strict=True)]
        start = len(own.rows[0]["input_ids"]) - own.text
        marks = self._caption_tokens(other, rows[0]["input_ids"], start)  # all rows have the same text at their end
        captions = [pad(marks, (len(row["input_ids"]) - len(marks), 0)) for row in rows]
        return replace(own, rows=rows, positions=positions, captions=captions)

    def _swapped(self, item: PermutedSample, other: PermutedSample, own: EncodedSample) -> list[Fields] | None:
        """The rows with the end of the text tokenised again; None where that might not be exact."""
        rendered, replaced = (self.token_ids(self._rendered(sample)) for sample in (item, other))
        swapped = [swap_text(row, own.tail, rendered, replaced) for row in own.rows]
        rows = [row for row in swapped if row is not None]
        return rows if len(rows) == len(swapped) else None

    def _rendered(self, item: PermutedSample) -> str:
        """The prompt with its images as placeholders."""
        return self._rendered_text(item.sample.caption, item.sample.num_candidates)

    def _rendered_text(self, caption: str, num_candidates: int) -> str:
        text = self.prompt.text(caption, num_candidates)
        return self.chat(self.turns([{"type": "image"}] * num_candidates, text))

    def around_caption(self, num_candidates: int) -> list[str]:
        """The prompt without its caption, images as placeholders: what stands before it, between mentions, after it."""
        if num_candidates not in self._around_caption:
            self._around_caption[num_candidates] = self._rendered_text(MARKER, num_candidates).split(MARKER)
        return self._around_caption[num_candidates]

    def _caption_tokens(self, item: PermutedSample, input_ids: Tensor, end_of_images: int) -> Tensor:
        """(S,) which tokens hold characters of the caption; none of them where that cannot be told.

        Args:
            item: the sample.
            input_ids: (S,) one of its prompts.
            end_of_images: the token after the last image's block.
        """
        caption, ids = item.sample.caption, input_ids.tolist()
        around = self.around_caption(item.sample.num_candidates)
        found = None
        if self.tokenizer.is_fast and self.spans.control_token_in(caption) is None:
            text = self._rendered(item)
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            chosen = tokens_of_spans(encoded["offset_mapping"], caption_spans(text, around, caption))
            found = aligned(chosen, encoded["input_ids"], ids)
        return self.caption_between(ids, end_of_images, around) if found is None else found

    def caption_between(self, ids: Sequence[int], end_of_images: int, around: Sequence[str]) -> Tensor:
        """(S,) the tokens of a caption that follows the images, by decoding the prompt's end.

        Args:
            ids: S token ids of the prompt.
            end_of_images: the token after the last image's block.
            around: as :meth:`around_caption` gives it.
        """
        placeholder = str(self.processor.image_token)  # type: ignore[attr-defined]
        if len(around) != 2 or placeholder not in around[0] or placeholder in around[1]:
            return torch.zeros(len(ids), dtype=torch.bool)
        before, after = (self.as_decoded(text) for text in (around[0].rpartition(placeholder)[2], around[1]))
        return tokens_between(ids, end_of_images, before, after, self.tokenizer.decode)

    def as_decoded(self, text: str) -> str:
        """A text as its tokens are decoded, without blanks, which templates trim."""
        return squeezed(self.tokenizer.decode(self.token_ids(text)))

    def _batch(self, items: Sequence[PermutedSample], encoded: Sequence[EncodedSample]) -> Batch:
        rows = [row for sample in encoded for row in sample.rows]
        tokenizer = self.tokenizer
        filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        padding = {"input_ids": filler}
        return Batch(
            tokens={name: _left_pad([row[name] for row in rows], padding.get(name, 0)) for name in rows[0]},
            position_of_token=_left_pad([positions for sample in encoded for positions in sample.positions], -1),
            caption_tokens=_left_pad([caption for sample in encoded for caption in sample.captions], False),
            vision=tuple(sample.vision for sample in encoded),
            visual_tokens=tuple(count for sample in encoded for count in sample.visual),
            image_rows=torch.stack(
                [torch.tensor(p) + number * len(p) for number, item in enumerate(items) for p in item.permutations]
            ),
            permutations=torch.tensor([p for item in items for p in item.permutations]),
            targets=torch.tensor([_position_of_target(item, p) for item in items for p in item.permutations]),
            sample_index=torch.tensor([item.index for item in items for _ in item.permutations]),
            ids=tuple(item.sample.id for item in items for _ in item.permutations),
        )

    def num_tokens(self, item: PermutedSample) -> int:
        """Tokens of a sample's prompt.

        Raises:
            UserError: the processor refuses the sample.
        """
        return len(self._process(item, tuple(range(item.sample.num_candidates)))[0]["input_ids"])

    def answer_trie(self, num_candidates: int) -> AnswerTrie:
        """The answers' tokens as they follow the generation prompt.

        An answer is an identifier after whatever the chat template writes between its generation prompt and the
        answer of an answered turn, such as the blank of ``Assistant: 1``.

        Raises:
            UserError: the tokenizer cannot tell two identifiers apart, or merges one with the prompt.
        """
        names = identifiers(self.prompt.identifiers, num_candidates)
        turns = self.turns([], self.prompt.text("x", num_candidates))
        tokens = self._answer_tokens(self.chat(turns), self.template.before_answer(turns), names)
        return AnswerTrie.build(names, tokens, self._end_of_turn)

    def _answer_tokens(self, prompt: str, lead: str, names: Sequence[str]) -> list[list[int]]:
        """The tokens of ``lead`` and each name, after the prompt's.

        A tokenizer that merges the lead's beginning with the prompt's end (a line break with a colon) never writes
        that token after the prompt, whose tokens are given; the lead is then tokenised apart from the prompt.
        """
        for text in (prompt, *(_UNMERGED if lead else ())):
            before = self.token_ids(text)
            answers = [self.token_ids(text + lead + name) for name in names]
            merged = [name for name, ids in zip(names, answers, strict=True) if ids[: len(before)] != before]
            if not merged:
                return [ids[len(before) :] for ids in answers]
        raise UserError(f"The tokenizer merges the identifier '{merged[0]}' with the prompt; use other identifiers.")

    def fingerprint(self) -> str:
        """A short digest of the chat template's text, of what it writes before an answer, and of the image processor's
        settings."""
        settings = self.processor.image_processor.to_dict()
        kept = {name: value for name, value in settings.items() if not name.startswith("_") and "class" not in name}
        turns = self.turns([], "x")
        lead = self.template.before_answer(turns)
        return short_digest([self.chat(turns), kept, *([lead] if lead else [])])  # older calibrations know no lead

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint, and the date in the prompts if there is one, as a calibration records them."""
        date = {} if self.date is None else {"date": self.date}
        return {**date, "processor": self.fingerprint()}

    def _process(self, item: PermutedSample, permutation: Sequence[int]) -> tuple[Fields, Fields, ImageBlocks]:
        """Token fields (S,), image fields and image blocks of one sample in one order of its images."""
        text = self.prompt.text(item.sample.caption, item.sample.num_candidates)
        images = [{"type": "image", "image": item.images[index]} for index in permutation]
        try:
            fields = self.tokenize(images, text)
            replaced = fields.pop("text_replacement_offsets", [[]])[0]
            shape = fields["input_ids"].shape
            tokens = {name: values[0] for name, values in fields.items() if _is_shaped(values, shape)}
            blocks = self.spans.locate(tokens["input_ids"], [entry["replacement"] for entry in replaced])
        except UserError as error:
            raise UserError(f"Sample {item.sample.id}: {error}") from error
        return tokens, {name: values for name, values in fields.items() if name not in tokens}, blocks

    def tokenize(self, images: list[dict[str, Any]], text: str) -> Any:
        """One prompt in the chat template, tokenised and with its images processed.

        Args:
            images: the chat template's image parts, ``{"type": "image", "image": picture}``.
            text: the user's text after them.

        Returns:
            the processor's output, with ``text_replacement_offsets``: the text that it wrote for each image.

        Raises:
            UserError: the chat template or the processor refuses the prompt.
        """
        return self._tokenized(self.turns(images, text))

    def _tokenized(self, turns: list[dict[str, Any]]) -> Any:
        control = self.spans.control_token_in(" ".join(part["text"] for part in _texts(turns)))
        try:
            return self.processor.apply_chat_template(
                turns,
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
                **self.template.options,
            )
        except Exception as error:  # templates and processors raise whatever they like
            if control is None:
                raise UserError(f"the model's processor refuses it: {first_line(error)}.") from error
            self._tokenized(_without(turns, control))  # raises if something else is wrong
            raise UserError(
                f"{self._source_of(control)} spells '{control}', one of the model's own tokens, which its processor "
                "cannot read as plain text; write it in other words."
            ) from error

    def _source_of(self, control: str) -> str:
        """Where a prompt's control token comes from."""
        sources = {"prompt.system": self.prompt.system, "prompt.template": self.prompt.template}
        return next((name for name, text in sources.items() if control in (text or "")), "the caption")

    def turns(self, images: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        """The conversation for the chat template: the system turn, if there is one, and the user's images and text."""
        turns = [turn("user", [*images, words(text)])]
        return turns if self.prompt.system is None else [turn("system", [words(self.prompt.system)]), *turns]

    def chat(self, turns: list[dict[str, Any]]) -> str:
        """The text that the chat template makes of a conversation, with its generation prompt.

        Args:
            turns: as :meth:`turns` gives them.

        Raises:
            UserError: the chat template refuses the conversation.
        """
        return self.template.render(turns)

    def token_ids(self, text: str) -> list[int]:
        """The tokenizer's ids for a text, without special tokens of its own."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _end_of_turn(self) -> int:
        """The token that ends an assistant turn; where the template writes none, the token that opens the next turn."""
        turns = self.turns([], "x")
        for following in ([], [turn("user", [words("x")])]):
            text = self.template.after_answer(turns, *following)
            token = self.spans.first_marker(self.token_ids(text))
            if token is not None:
                return token
        return self.tokenizer.eos_token_id


def _texts(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of a conversation that are text."""
    return [part for turn in turns for part in turn["content"] if part["type"] == "text"]


def _without(turns: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """A conversation whose texts lack ``text``."""

    def cut(part: dict[str, Any]) -> dict[str, Any]:
        return words(part["text"].replace(text, "")) if part["type"] == "text" else part

    return [{**turn, "content": [cut(part) for part in turn["content"]]} for turn in turns]


def _position_of_target(item: PermutedSample, permutation: Sequence[int]) -> int:
    return -1 if item.sample.target is None else permutation.index(item.sample.target)


def _is_shaped(values: Any, shape: torch.Size) -> bool:
    return isinstance(values, Tensor) and values.shape == shape


def _move_blocks(blocks: ImageBlocks, permutation: Sequence[int], length: int) -> tuple[Tensor, ImageBlocks]:
    """For blocks in the permuted order: the source index of every token, and the blocks' new extents."""
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


def _with_text(positions: Tensor, row: Fields) -> Tensor:
    """The positions of a row whose text after the images has become longer or shorter."""
    return pad(positions, (0, len(row["input_ids"]) - len(positions)), value=-1)


def _left_pad(rows: Sequence[Tensor], value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.stack([pad(row, (longest - len(row), 0), value=value) for row in rows])
