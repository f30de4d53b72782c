"""From permuted samples to model inputs, in the data workers: one processor call per sample, not per permutation.

The processor sees a sample once, with its images in the annotation's order. The other permutations are made by moving
the images' blocks of tokens: the text between them stays, and an image's tokens do not depend on where it stands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import ProcessorMixin

from lad_pl.answers import AnswerTrie
from lad_pl.errors import UserError
from lad_pl.prompts import PromptSpec, identifiers
from lad_pl.types import Batch, PermutedSample

TokenFields = dict[str, Tensor]


class PromptEncoder:
    """Turns :class:`PermutedSample` records into a :class:`Batch`; holds no weights, so workers can carry it.

    Args:
        processor: the model's processor.
        image_tokens: ids of the placeholder tokens that image features replace.
        delimiters: ids of the tokens that open and close an image.
        prompt: the prompt's words and image handling.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        image_tokens: Sequence[int],
        delimiters: Sequence[int],
        prompt: PromptSpec,
    ) -> None:
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self.image_tokens = torch.tensor(sorted(image_tokens))
        self.delimiters = torch.tensor(sorted(delimiters), dtype=torch.long)
        self.prompt = prompt

    def __call__(self, items: Sequence[PermutedSample]) -> Batch:
        """Encode a list of samples, each under all of its permutations.

        Raises:
            UserError: a sample's image spans cannot be found.
        """
        rows: list[TokenFields] = []
        positions: list[Tensor] = []
        vision: list[TokenFields] = []
        image_rows: list[Tensor] = []
        for number, item in enumerate(items):
            tokens, images = self._process(item)
            runs = self._runs(tokens["input_ids"], item)
            for permutation in item.permutations:
                order, moved = _move_runs(runs, permutation, len(tokens["input_ids"]))
                rows.append({name: values[order] for name, values in tokens.items()})
                positions.append(self._positions(rows[-1]["input_ids"], moved))
                image_rows.append(torch.tensor(permutation) + number * len(permutation))
            vision.append(images)
        padding = {"input_ids": self.tokenizer.pad_token_id}
        return Batch(
            tokens={name: _left_pad([row[name] for row in rows], padding.get(name, 0)) for name in rows[0]},
            position_of_token=_left_pad(positions, -1),
            vision={name: torch.cat([images[name] for images in vision]) for name in vision[0]},
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
        before = self._chat(self.prompt.text("x", num_candidates))
        base = self._ids(before)
        tokens = []
        for name in names:
            ids = self._ids(before + name)
            if ids[: len(base)] != base:
                raise UserError(f"The tokenizer merges the identifier '{name}' with the prompt; use other identifiers.")
            tokens.append(ids[len(base) :])
        return AnswerTrie.build(names, tokens, self._end_of_turn())

    def fingerprint(self) -> str:
        """A short digest of the chat template's words and of what the image processor does."""
        settings = self.processor.image_processor.to_dict()
        kept = {name: value for name, value in settings.items() if not name.startswith("_") and "class" not in name}
        described = json.dumps([self._chat("x"), kept], sort_keys=True, default=str)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def _process(self, item: PermutedSample) -> tuple[TokenFields, TokenFields]:
        """Token fields (S,) and image fields of one sample, images in the annotation's order."""
        text = self.prompt.text(item.sample.caption, item.sample.num_candidates)
        try:
            fields: Any = self.processor.apply_chat_template(
                [_user_turn([{"type": "image", "image": image} for image in item.images], text)],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                sanitize_control_tokens=True,  # a caption that spells <|image_pad|> stays text
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"Sample {item.sample.id}: the model's processor refuses it: {error}") from error
        shape = fields["input_ids"].shape
        tokens = {name: values[0] for name, values in fields.items() if values.shape == shape}
        return tokens, {name: values for name, values in fields.items() if name not in tokens}

    def _runs(self, input_ids: Tensor, item: PermutedSample) -> list[tuple[int, int]]:
        """(start, end) of each image's visual tokens, in the annotation's order."""
        is_image = torch.isin(input_ids, self.image_tokens).int()
        edges = torch.diff(pad(is_image, (1, 1)))
        starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
        if len(starts) != item.sample.num_candidates:
            raise UserError(
                f"Sample {item.sample.id}: the prompt holds {len(starts)} runs of image tokens for "
                f"{item.sample.num_candidates} images; this processor does not write one run per image."
            )
        return list(zip(starts, ends, strict=True))

    def _positions(self, input_ids: Tensor, runs: list[tuple[int, int]]) -> Tensor:
        """(S,) position of the image that each token belongs to, or -1, by the span rule."""
        positions = torch.full_like(input_ids, -1)
        is_delimiter = torch.isin(input_ids, self.delimiters)
        for position, (start, end) in enumerate(runs):
            if self.prompt.spans == "delimiters":
                start -= int(start > 0 and bool(is_delimiter[start - 1]))
                end += int(end < len(input_ids) and bool(is_delimiter[end]))
            positions[start:end] = position
        return positions

    def _chat(self, text: str) -> str:
        return self.processor.apply_chat_template([_user_turn([], text)], add_generation_prompt=True)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _end_of_turn(self) -> int:
        """The token after an assistant's words, as the chat template writes it."""
        marker = "x"
        turns = [_user_turn([], "x"), {"role": "assistant", "content": [{"type": "text", "text": marker}]}]
        text = self.processor.apply_chat_template(turns)
        closing = self._ids(text[text.rindex(marker) + len(marker) :].lstrip())
        special = [token for token in closing if token in self.tokenizer.all_special_ids]
        return special[0] if special else self.tokenizer.eos_token_id


def _user_turn(images: list[dict[str, Any]], text: str) -> dict[str, Any]:
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def _position_of_target(item: PermutedSample, permutation: Sequence[int]) -> int:
    return -1 if item.sample.target is None else permutation.index(item.sample.target)


def _move_runs(
    runs: list[tuple[int, int]], permutation: Sequence[int], length: int
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Source index of every token once the image blocks stand in the permuted order, and the blocks' new extents."""
    order: list[int] = []
    moved = []
    fixed_start = 0
    for (start, end), source in zip(runs, permutation, strict=True):
        order.extend(range(fixed_start, start))
        moved.append((len(order), len(order) + runs[source][1] - runs[source][0]))
        order.extend(range(*runs[source]))
        fixed_start = end
    order.extend(range(fixed_start, length))
    return torch.tensor(order), moved


def _left_pad(rows: Sequence[Tensor], value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.stack([pad(row, (longest - len(row), 0), value=value) for row in rows])
