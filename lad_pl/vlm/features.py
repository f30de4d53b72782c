"""Image features, computed once per distinct image and laid out for prompts that show them in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from lad_pl.errors import UserError

TOWER_FIELDS = ("visual_indicator_features",)
"""Output fields that belong to the tower and not to an image: Ovis2's embeddings of its indicator tokens."""


@dataclass(frozen=True)
class PerImageFeatures:
    """Vision-tower outputs, cut into images.

    Families differ in how a tower's output is laid out: one tensor per image, per tile or per sample, one for all
    images, with or without a copy per decoder layer (deepstack). What they share is the order: token after token,
    image after image. So every field that holds one vector per visual token is cut by the images' numbers of tokens.
    """

    outputs: tuple[ModelOutput, ...]
    """The tower's output for each sample."""
    sizes: tuple[tuple[int, ...], ...]
    """Visual tokens of each image of each sample."""

    @classmethod
    def of(cls, outputs: Sequence[ModelOutput], visual_tokens: Sequence[int]) -> PerImageFeatures:
        """Pair the tower's outputs with the images' numbers of tokens.

        Args:
            outputs: one per sample, all with the same number of images.
            visual_tokens: number of visual tokens of each of the M images, sample after sample.
        """
        each = len(visual_tokens) // len(outputs)
        sizes = tuple(tuple(visual_tokens[start : start + each]) for start in range(0, len(visual_tokens), each))
        return cls(tuple(outputs), sizes)

    def shown(self, images: Sequence[int]) -> ModelOutput:
        """The output that the tower would give for a list of images.

        Args:
            images: indices into the M images; may repeat.

        Raises:
            UserError: the output does not hold one feature vector per visual token.
        """
        kept: dict[str, Any] = {}
        for name in self.outputs[0]:
            values = [output[name] for output in self.outputs]
            kept[name] = values[0] if name in TOWER_FIELDS else self._laid_out(values, images)
        if not any(self._holds_features([output.get(name) for output in self.outputs]) for name in kept):
            raise UserError(
                f"the vision tower's {type(self.outputs[0]).__name__} holds no {sum(map(sum, self.sizes))} feature "
                "vectors, one per visual token; this model family is not supported."
            )
        return type(self.outputs[0])(**kept)

    def _holds_features(self, values: Sequence[Any]) -> bool:
        return all(_num_vectors(value) == sum(sizes) for value, sizes in zip(values, self.sizes, strict=True))

    def _laid_out(self, values: Sequence[Any], images: Sequence[int]) -> Any:
        """One field of the output for a list of images; None if the field does not hold features."""
        if self._holds_features(values):
            pieces = [
                piece
                for value, sizes in zip(values, self.sizes, strict=True)
                for piece in _vectors(value).split(list(sizes))
            ]
            chosen = [pieces[image] for image in images]
            return torch.cat(chosen) if isinstance(values[0], Tensor) else tuple(chosen)
        if isinstance(values[0], list | tuple) and values[0]:  # a copy per decoder layer
            layers = [self._laid_out(layer, images) for layer in zip(*values, strict=True)]
            return None if any(layer is None for layer in layers) else layers
        return None


def _num_vectors(value: Any) -> int | None:
    """How many feature vectors a tensor or a list of tensors holds; None for anything else."""
    if isinstance(value, Tensor):
        return value.shape[:-1].numel() if value.ndim > 1 else None
    if isinstance(value, list | tuple) and value:
        counts = [_num_vectors(item) for item in value if isinstance(item, Tensor)]
        if len(counts) == len(value):
            return sum(count for count in counts if count is not None)
    return None


def _vectors(value: Tensor | Sequence[Tensor]) -> Tensor:
    """(tokens, width)."""
    tensors = [value] if isinstance(value, Tensor) else value
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])
