"""Attention mass per image from the last prompt token and from the caption's, under any attention backend.

A fast backend (sdpa, flash attention) never materialises the attention map. While a capture is open, the backend's
function is wrapped: for the watched layers it computes, beside its own fast output, the attention of the last query and
of the caption's. A forward hook on each watched layer takes these rows (or, under eager, those of the full map) and
keeps only their sums over the image spans (eq. 6): twice B x L x H x N numbers, never a map; and, for In-Context
Re-ranking, one number per token, the sum over layers and heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lad_pl.errors import UserError
from lad_pl.vlm.attention import (
    AttentionFunction,
    CaptionQueries,
    caption_attention,
    hidden_keys,
    last_query_attention,
    visible_keys,
    wrapped_attention,
)
from lad_pl.vlm.layers import check_layers, layer_names

CaptionRows = tuple[Tensor, Tensor]
"""(B, H, K) mean attention of the captions' tokens, and (B or 1, K) which keys some of them cannot see."""


class AttentionMass:
    """Attention mass per image that a capture has collected, layer by layer.

    Args:
        layers: indices of the L watched layers.
        spans: (B, S, N), 1 where a token belongs to an image.
        captions: the captions' queries; None where they are not read.
    """

    def __init__(self, layers: Sequence[int], spans: Tensor, captions: CaptionQueries | None = None) -> None:
        self.layers = tuple(layers)
        self.captions = captions
        self._spans = spans
        self._by_layer: dict[int, Tensor] = {}
        self._unseen: dict[int, Tensor] = {}
        self._of_caption: dict[int, Tensor] = {}
        self._of_tokens: dict[int, Tensor] = {}
        self._unseen_by_caption: dict[int, Tensor] = {}

    def add(
        self,
        layer: int,
        weights: Tensor | None,
        mask: Tensor | None,
        window: int | None = None,
        caption: CaptionRows | None = None,
    ) -> None:
        """Keep one layer's sums.

        Args:
            layer: index of the decoder layer.
            weights: (B, H, Q, K) attention weights of the last Q >= 1 queries on the last K <= S tokens, or None if
                the backend gave nothing.
            mask: the layer's attention mask, if any.
            window: how many of the latest keys the layer sees, where the mask does not say it.
            caption: the captions' rows, where ``weights`` does not hold them.
        """
        if weights is None:
            return
        length, device = weights.shape[-1], weights.device
        self._by_layer[layer] = self._on_images(weights[:, :, -1].float())
        self._unseen[layer] = self._images_among(_hidden(length, mask, window, device))
        if caption is None and self.captions is not None and weights.shape[2] >= self.captions.reach:
            queries = self.captions.to(device)
            hidden = hidden_keys(visible_keys(mask, queries, length, sliding_window=window))
            caption = queries.mean(queries.rows(weights).float()), hidden
        if caption is not None:
            rows, hidden = caption
            self._of_caption[layer] = self._on_images(rows)
            self._of_tokens[layer] = self._padded(rows.sum(1))
            self._unseen_by_caption[layer] = self._images_among(hidden)

    def _padded(self, values: Tensor, fill: float = 0) -> Tensor:
        """(..., K) to (..., S): tokens before a sliding window are not in its cache."""
        return pad(values, (max(0, self._spans.shape[1] - values.shape[-1]), 0), value=fill)

    def _on_images(self, row: Tensor) -> Tensor:
        """(B, H, N): the sums of (B, H, K) over each image's span."""
        spans = self._spans.to(row.device)  # a model spread over devices
        return torch.einsum("bhs,bsn->bhn", self._padded(row), spans)

    def _images_among(self, hidden: Tensor) -> Tensor:
        """(B, N): which images have a token among the hidden keys, (B or 1, K)."""
        return (self._padded(hidden, True)[:, :, None] & self._spans.to(hidden.device).bool()).any(1)

    def stacked(self) -> Tensor:
        """(B, L, H, N) attention mass of the last prompt token, in the order of ``layers``.

        Raises:
            UserError: a layer has yielded nothing, or does not see all tokens of an image.
        """
        silent = [layer for layer in self.layers if layer not in self._by_layer]
        if silent:
            raise UserError(
                f"Layer {silent[0]} yielded no attention under this backend; set vlm.attn_implementation to eager, or "
                "choose other layers (model.layers)."
            )
        unseen = self._gathered(self._unseen)
        if unseen.any():
            place, _, image = unseen.transpose(0, 1).nonzero()[0].tolist()
            blind = [layer for layer, images in zip(self.layers, unseen.unbind(1), strict=True) if images.any()]
            raise UserError(
                f"Layer {self.layers[place]} does not see the whole of image {image + 1}: the prompt is longer than "
                f"its attention window. Leave out {layer_names(blind)} (model.layers), or show fewer or smaller images."
            )
        return self._gathered(self._by_layer)

    def of_captions(self) -> Tensor | None:
        """(B, L, H, N) attention mass of the captions' tokens, the mean over a caption's tokens.

        None where it would not be comparable: a prompt's caption has no tokens of its own, or one of them does not see
        the whole of every image in every layer, as where an image follows the caption.
        """
        return self._gathered(self._of_caption) if self._captions_see() else None

    def of_captions_on_tokens(self) -> Tensor | None:
        """(B, S) attention of the captions' tokens to every token, the sum over layers and heads; None likewise."""
        return self._gathered(self._of_tokens).sum(1) if self._captions_see() else None

    def _captions_see(self) -> bool:
        if any(layer not in self._of_caption for layer in self.layers):
            return False
        return not bool(self._gathered(self._unseen_by_caption).any())

    def _gathered(self, by_layer: dict[int, Tensor]) -> Tensor:
        """(B, L, ...), on the device of the first layer."""
        device = by_layer[self.layers[0]].device
        return torch.stack([by_layer[layer].to(device) for layer in self.layers], 1)


@contextmanager
def capture(
    attention_modules: Sequence[nn.Module | None],
    layers: Sequence[int],
    position_of_token: Tensor,
    num_candidates: int,
    backend: str,
    caption_tokens: Tensor | None = None,
    decoder: nn.Module | None = None,
) -> Iterator[AttentionMass]:
    """Collect attention mass from the forward passes inside the ``with`` block.

    Args:
        attention_modules: the decoder's attention modules, one per layer; None where a layer has none.
        layers: indices of the layers to watch.
        position_of_token: (B, S) position of the image that each prompt token belongs to, or -1.
        num_candidates: N.
        backend: the name of the model's attention implementation.
        caption_tokens: (B, S) which tokens are the caption's; None to read the last token alone.
        decoder: the language model, which may leave out queries of the caption that nothing but this reads.

    Raises:
        UserError: a layer lies beyond the model or has no attention.
    """
    check_layers(layers, attention_modules)
    spans = (position_of_token[:, :, None] == torch.arange(num_candidates, device=position_of_token.device)).float()
    mass = AttentionMass(layers, spans, None if caption_tokens is None else CaptionQueries.of(caption_tokens))
    watched = {module: layer for layer in layers if (module := attention_modules[layer]) is not None}

    windows: dict[nn.Module, int | None] = {}
    captions: dict[nn.Module, CaptionRows] = {}

    def keep(module: nn.Module, inputs: Any, options: dict[str, Any], output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        mask = _argument(module, "attention_mask", inputs, options)
        mass.add(watched[module], weights, mask, windows.get(module), captions.pop(module, None))

    with ExitStack() as stack:
        for module in watched:
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        if mass.captions is not None and decoder is not None:
            stack.callback(_keep_queries(decoder, mass.captions.reach))
        if backend != "eager":
            stack.enter_context(_rows(backend, set(watched), windows, captions, mass.captions))
        yield mass


def _keep_queries(decoder: nn.Module, count: int) -> Callable[[], None]:
    """Let a language model that goes on with its last tokens alone from some layer on take ``count`` of them along.

    Gemma 4's last layers reuse the keys of earlier ones, and so compute nothing for tokens without logits.

    Returns:
        what undoes it.
    """
    if "logits_to_keep" not in inspect.signature(decoder.forward).parameters:
        return lambda: None

    def more(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kept = options.get("logits_to_keep")
        return inputs, {**options, "logits_to_keep": max(kept, count)} if isinstance(kept, int) and kept else options

    return decoder.register_forward_pre_hook(more, with_kwargs=True).remove


def _hidden(length: int, mask: Tensor | None, window: int | None, device: torch.device) -> Tensor:
    """(B or 1, K): which keys the last query cannot see, in no head."""
    if mask is not None and mask.ndim == 4:
        return hidden_keys(mask[:, :, -1:, :length])
    return (torch.arange(length, device=device) < length - (window or length))[None]


def _argument(module: nn.Module, name: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """An argument of a module's forward pass, by name, however it was passed."""
    if name in options or not inputs:
        return options.get(name)
    return inspect.signature(module.forward).bind_partial(*inputs).arguments.get(name)


@contextmanager
def _rows(
    backend: str,
    watched: set[nn.Module],
    windows: dict[nn.Module, int | None],
    captions: dict[nn.Module, CaptionRows],
    queries: CaptionQueries | None,
) -> Iterator[None]:
    """Let the attention function ``backend`` return the last query's row for the watched modules.

    ``windows`` receives the window of each, where the function applies one by itself, and ``captions`` the rows of the
    captions' ``queries``, as far as the function has all of them.
    """

    def wrap(original: AttentionFunction) -> AttentionFunction:
        def with_rows(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, Tensor | None]:
            output, weights = original(module, query, key, value, attention_mask, **options)
            if module in watched:
                windows[module] = options.get("sliding_window")
                if weights is None:
                    key = key.float()
                    weights = last_query_attention(query, key, attention_mask, **options)
                    if queries is not None and query.shape[2] >= queries.reach:
                        captions[module] = _caption_rows(module, query, key, attention_mask, queries, options)
            return output, weights

        return with_rows

    with wrapped_attention(backend, wrap):
        yield


def _caption_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    queries: CaptionQueries,
    options: dict[str, Any],
) -> CaptionRows:
    causal = options.get("is_causal")
    options = {**options, "is_causal": getattr(module, "is_causal", True) if causal is None else causal}
    return caption_attention(query, key, attention_mask, queries.to(query.device), **options)
