"""SoFA, soft attention between images: in some decoder layers an image also sees images that come after it.

A causal model lets late images see the early ones but not the other way round. SoFt Attention (Tian et al.,
"Identifying and Mitigating Position Bias of Multi-image Vision-Language Models", CVPR 2025, arXiv:2503.13792)
interpolates linearly between inter-image causal attention and its bidirectional counterpart, by a weight sigma that is
chosen on a small validation set, in every second layer. It acts inside the forward pass: on the attention function that
the layers call, and on the mask that they hand it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lad_pl.errors import UserError
from lad_pl.vlm.attention import AttentionFunction, wrapped_attention
from lad_pl.vlm.layers import DecoderLayers, check_layers

BACKENDS = ("sdpa", "eager")
"""Attention implementations that take an additive mask."""


@dataclass(frozen=True)
class Sofa:
    """Settings of soft attention between images.

    Both variants change only cells of the attention mask that are hidden because the key comes after the query. A
    sliding window still bounds how far back a token looks, and cells that the model shows anyway, such as those within
    an image of Gemma 3, are unchanged. Which tokens belong to an image follows the prompt's span rule.
    """

    variant: Literal["published", "paper"] = "published"
    """published: the published LAD code. Hidden cells whose query and key both belong to images, be it the same image
    or two, get log(sigma) in the additive mask: softmax(q k / sqrt(d) + M), so that exp(q k / sqrt(d)) is weighted by
    sigma. paper: A = (1 - sigma) A_causal + sigma A_bidirectional, the reading of "linear interpolation" under which
    the weights remain a distribution: each is a softmax of its own, and A_bidirectional also shows the hidden cells
    between two different images; the layer's output is the same mixture."""
    sigma: float = 0.5
    """0 is causal, 1 bidirectional. `published` takes its logarithm, so there it lies above 0."""
    every: int = 2
    """Soften the first, the 1 + every-th, ... of the layers that have self-attention."""
    layers: list[int] | None = None
    """Soften these layers instead."""

    def __post_init__(self) -> None:
        if self.variant not in ("published", "paper"):
            raise UserError(f"sofa.variant is '{self.variant}'; choose published or paper.")
        if not 0 <= self.sigma <= 1:
            raise UserError(f"sofa.sigma is {self.sigma}; give a weight from 0 (causal) to 1 (bidirectional).")
        if self.variant == "published" and self.sigma == 0:
            raise UserError("sofa.sigma is 0, and variant 'published' takes its logarithm; give more than 0.")
        if self.every < 1:
            raise UserError(f"sofa.every is {self.every}; 1 softens every layer, 2 every second one.")

    def choose(self, layers: DecoderLayers) -> tuple[int, ...]:
        """The indices of the layers to soften.

        Raises:
            UserError: ``self.layers`` names none, one twice, one beyond the model or one without attention.
        """
        if self.layers is None:
            with_attention = [index for index, module in enumerate(layers.attention) if module is not None]
            return tuple(with_attention[:: self.every])
        check_layers(self.layers, layers.attention, "sofa.layers")
        return tuple(self.layers)


def hidden_image_cells(visible: Tensor, position_of_token: Tensor, variant: str) -> Tensor:
    """The cells of the attention mask that SoFA softens.

    Args:
        visible: (B or 1, H or 1, S, S), queries by keys: what the model's own mask shows.
        position_of_token: (B, S) position of the image that each token belongs to, or -1.
        variant: of :class:`Sofa`.

    Returns:
        (B, H or 1, S, S): hidden, key after query, both in images; for ``paper``, in two different images.
    """
    query, key = position_of_token[:, None, :, None], position_of_token[:, None, None, :]
    cells = (query >= 0) & (key >= 0)
    if variant == "paper":
        cells = cells & (query != key)
    length = position_of_token.shape[1]
    after = torch.ones(length, length, dtype=torch.bool, device=visible.device).triu_(1)
    return cells & after & ~visible


def visible_cells(mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """(B or 1, H or 1, S, S): the visible cells of a mask, which is None (causal), boolean or additive."""
    if mask is None:
        return torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril_()
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def soft_mask(mask: Tensor | None, position_of_token: Tensor, settings: Sofa, like: Tensor) -> Tensor:
    """The additive mask with the hidden image-to-image cells softened.

    Args:
        mask: the model's own: None for a causal one, boolean, or additive.
        position_of_token: (B, S).
        settings: ``published`` writes log(sigma) into the cells, ``paper`` zero (its bidirectional half).
        like: a tensor of the mask's data type and device.

    Returns:
        (B, H or 1, S, S), in logits.

    Raises:
        UserError: no cell is hidden.
    """
    position_of_token = position_of_token.to(like.device)
    visible = visible_cells(mask, position_of_token.shape[1], like.device)
    cells = hidden_image_cells(visible, position_of_token, settings.variant)
    if not cells.any():
        raise UserError("SoFA changes nothing in this model: its images see each other in both directions already.")
    if mask is None or mask.dtype == torch.bool:  # not -inf: softmax over a row of padding must be finite
        mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
        mask = mask.masked_fill_(~visible, torch.finfo(like.dtype).min)
    return torch.where(cells, math.log(settings.sigma) if settings.variant == "published" else 0.0, mask)


class SoftMasks:
    """The softened masks of one forward pass, one per kind of layer, as layers of one kind share the model's mask."""

    def __init__(self, position_of_token: Tensor, settings: Sofa) -> None:
        self._position_of_token = position_of_token
        self._settings = settings
        self._text_at_end = int((position_of_token < 0).all(0).flip(0).long().cumprod(0).sum())
        self._last: dict[str, tuple[Tensor | None, Tensor]] = {}

    def of(self, kind: str, mask: Tensor | None, query: Tensor) -> Tensor | None:
        """The softened form of ``mask``; see :func:`soft_mask`.

        Args:
            kind: of the layer, as in :class:`~lad_pl.vlm.layers.DecoderLayers`.
            mask: the model's mask for the layer.
            query: (B, H, Q, D). Gemma 4's last layers keep no keys of their own and run on the last token alone; that
                is text, so their mask is returned unchanged.
        """
        if query.shape[2] <= self._text_at_end:
            return mask
        own, soft = self._last.get(kind, (None, None))
        if soft is None or own is not mask or soft.device != query.device:  # a model spread over devices
            soft = soft_mask(mask, self._position_of_token, self._settings, query)
            self._last[kind] = (mask, soft)  # one per kind, whatever the depth
        return soft


@contextmanager
def soft_attention(
    layers: DecoderLayers, position_of_token: Tensor, settings: Sofa | None, backend: str
) -> Iterator[None]:
    """Soften the attention between images in the one forward pass inside the ``with`` block.

    Open a capture inside this block, so that it sees the model's own mask; the last query is text, and its row is the
    same under both masks.

    Args:
        layers: the model's decoder layers.
        position_of_token: (B, S) position of the image that each prompt token belongs to, or -1.
        settings: None for the model's own attention.
        backend: the name of the model's attention implementation.

    Raises:
        UserError: the backend takes no additive mask, a layer does not exist, or a layer does not call the backend's
            attention function.
    """
    if settings is None:
        yield
        return
    if backend not in BACKENDS:
        raise UserError(
            f"SoFA needs an additive attention mask, which '{backend}' does not take; set vlm.attn_implementation to "
            "sdpa."
        )
    chosen = {module: index for index in settings.choose(layers) if (module := layers.attention[index]) is not None}
    masks = SoftMasks(position_of_token, settings)
    reached: set[nn.Module] = set()

    def wrap(original: AttentionFunction) -> AttentionFunction:
        def softened(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, Tensor | None]:
            def attend(mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
                return original(module, query, key, value, mask, **options)

            if module not in chosen:
                return attend(attention_mask)
            reached.add(module)
            soft = attend(masks.of(layers.kinds[chosen[module]], attention_mask, query))
            return soft if settings.variant == "published" else _mixed(attend(attention_mask), soft, settings.sigma)

        return softened

    with wrapped_attention(backend, wrap):
        yield
    missed = sorted(index for module, index in chosen.items() if module not in reached)
    if missed:
        raise UserError(f"Layer {missed[0]} computes its attention in a way of its own; SoFA does not reach it.")


def _mixed(
    causal: tuple[Tensor, Tensor | None], bidirectional: tuple[Tensor, Tensor | None], sigma: float
) -> tuple[Tensor, Tensor | None]:
    """(1 - sigma) causal + sigma bidirectional, of the output and, where the backend returns it, of the map."""
    output = torch.lerp(causal[0], bidirectional[0], sigma)
    if causal[1] is None or bidirectional[1] is None:
        return output, None
    return output, torch.lerp(causal[1], bidirectional[1], sigma)
