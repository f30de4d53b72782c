"""Which tokens of a prompt belong to which image, for every processor.

A processor replaces each image's placeholder by a text of its own: a run of visual tokens, several runs with markers
between the tiles, or either with words around it. It returns that text for every image
(``return_text_replacement_offsets``), which determines the image's tokens exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lad_pl.errors import UserError


@dataclass(frozen=True)
class ImageBlocks:
    """The images' tokens in one prompt of S tokens, in the order in which the images stand."""

    extents: tuple[tuple[int, int], ...]
    """(start, end) of each image's block: from the first to the last special token that the processor writes for it,
    with the visual tokens, tile markers and line breaks between them."""
    visual: tuple[int, ...]
    """Number of visual tokens (those whose embeddings the image features replace) in each block."""
    before: int
    """Delimiters that the chat template writes directly before every block."""
    after: int
    """Delimiters that the chat template writes directly after every block."""
    movable: bool
    """Whether the processor writes the same words around every image, so that permuting the images only permutes the
    blocks."""


class ImageSpans:
    """Finds the images' blocks.

    Args:
        tokenizer: the model's tokenizer.
        image_token: id of the visual token.
        placeholders: what a chat template writes for an image, a video or audio; None where the processor has none.
    """

    def __init__(self, tokenizer: Any, image_token: int, placeholders: Sequence[str | None] = ()) -> None:
        self.image_token = image_token
        self._visual: str = tokenizer.convert_ids_to_tokens(image_token)
        added = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items()}
        markers = {text: token for token, text in added.items() if not text.isspace() and token != image_token}
        self._markers = markers
        self._marker_ids = torch.tensor(sorted(markers.values()), dtype=torch.long)
        marker = _any_of(markers)
        self._marker = re.compile(marker)
        self._markers_at_end = re.compile(f"(?:{marker})*\\Z")
        self._markers_at_start = re.compile(f"\\A(?:{marker})*")
        special = [entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special]
        self._reserved = re.compile(_any_of({text for text in (*special, self._visual, *placeholders) if text}))

    def first_marker(self, input_ids: Sequence[int]) -> int | None:
        """The first of ``input_ids`` that is an added token of the tokenizer (a marker), if any."""
        return next((token for token in input_ids if token in self._markers.values()), None)

    def control_token_in(self, text: str) -> str | None:
        """The first control token that ``text`` spells out, if any: a special token or a placeholder."""
        found = self._reserved.search(text)
        return found.group() if found else None

    def locate(self, input_ids: Tensor, replacements: Sequence[str]) -> ImageBlocks:
        """Find every image's block.

        Args:
            input_ids: (S,) the prompt's tokens, without padding.
            replacements: the text that the processor wrote for each image, in the order of the prompt.

        Raises:
            UserError: the prompt's visual tokens are not those of the replacements.
        """
        visual = tuple(text.count(self._visual) for text in replacements)
        places = (input_ids == self.image_token).nonzero().flatten()
        if len(places) != sum(visual) or 0 in visual:
            raise UserError(
                f"the processor announces {sum(visual)} visual tokens for {len(visual)} images, the prompt holds "
                f"{len(places)}; this model family is not supported."
            )
        extents, around = [], set()
        for text, own in zip(replacements, places.split(visual), strict=True):
            head, tail = text[: text.index(self._visual)], text[text.rindex(self._visual) + len(self._visual) :]
            around.add((self._markers_at_end.sub("", head), self._markers_at_start.sub("", tail)))
            start = self._outermost(input_ids, int(own[0]), head, -1)
            extents.append((start, self._outermost(input_ids, int(own[-1]), tail, 1) + 1))
        return ImageBlocks(
            tuple(extents), visual, *self._template_delimiters(input_ids, extents), movable=len(around) == 1
        )

    def _outermost(self, input_ids: Tensor, place: int, text: str, step: int) -> int:
        """Index of the outermost marker of ``text``, which the processor wrote before or after ``place``."""
        markers = self._marker.findall(text)
        if not markers:
            return place
        outermost = markers[0] if step < 0 else markers[-1]
        places = (input_ids == self._markers[outermost]).nonzero().flatten().tolist()
        beside = sorted((other for other in places if (other - place) * step > 0), key=lambda other: abs(other - place))
        found = next(iter(beside[markers.count(outermost) - 1 :]), None)
        if found is None or (input_ids[min(place, found) + 1 : max(place, found)] == self.image_token).any():
            raise UserError(f"the prompt lacks '{outermost}' beside an image; this model family is not supported.")
        return found

    def positions(self, input_ids: Tensor, blocks: ImageBlocks, rule: str) -> Tensor:
        """(S,) position of the image that each token belongs to, or -1.

        Args:
            input_ids: (S,).
            blocks: where the images stand.
            rule: "visual" for the visual tokens alone, "delimiters" for everything from an image's first delimiter to
                its last.
        """
        positions = torch.full_like(input_ids, -1)
        for position, (start, end) in enumerate(blocks.extents):
            if rule == "delimiters":
                positions[start - blocks.before : end + blocks.after] = position
            else:
                positions[start:end][input_ids[start:end] == self.image_token] = position
        return positions

    def _template_delimiters(self, input_ids: Tensor, extents: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """How many markers stand before and after every block, the same ones for every image."""
        taken = torch.isin(input_ids, self._marker_ids, invert=True)  # only markers outside the blocks are delimiters
        for start, end in extents:
            taken[start:end] = True
        before = _common_run(input_ids, taken, [start - 1 for start, _ in extents], -1)
        for start, _ in extents:
            taken[start - before : start] = True
        return before, _common_run(input_ids, taken, [end for _, end in extents], 1)


def _any_of(texts: Iterable[str]) -> str:
    """A pattern that matches any of these texts, the longest first; without texts it matches nothing."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _common_run(input_ids: Tensor, taken: Tensor, starts: Sequence[int], step: int) -> int:
    """Length of the longest run of tokens, none of them ``taken``, that is the same from every start."""
    length = 0
    while True:
        places = [start + step * length for start in starts]
        if any(not 0 <= place < len(input_ids) or taken[place] for place in places):
            return length
        if len({int(input_ids[place]) for place in places}) > 1:
            return length
        length += 1
