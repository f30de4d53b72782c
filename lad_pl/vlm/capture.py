"""Attention mass per image from the last prompt token, under any attention backend.

A fast backend (sdpa, flash attention) never materialises the attention map. While a capture is open, the backend's
function is wrapped: for the watched layers it returns, beside its own fast output, the attention of the last query. A
forward hook on each watched layer takes that row (or, under eager, the last row of the full map) and keeps only its
sums over the image spans (eq. 6): B x L x H x N numbers, never a map.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lad_pl.errors import UserError
from lad_pl.vlm.attention import AttentionFunction, last_query_attention, wrapped_attention
from lad_pl.vlm.layers import check_layers, layer_names


class AttentionMass:
    """Attention mass per image that a capture has collected, layer by layer.

    Args:
        layers: indices of the L watched layers.
        spans: (B, S, N), 1 where a token belongs to an image.
    """

    def __init__(self, layers: Sequence[int], spans: Tensor) -> None:
        self.layers = tuple(layers)
        self._spans = spans
        self._by_layer: dict[int, Tensor] = {}
        self._unseen: dict[int, Tensor] = {}

    def add(self, layer: int, weights: Tensor | None, mask: Tensor | None, window: int | None = None) -> None:
        """Keep one layer's sums.

        Args:
            layer: index of the decoder layer.
            weights: (B, H, Q, K) attention weights of the last Q >= 1 queries on the last K <= S tokens, or None if
                the backend gave nothing.
            mask: the layer's attention mask, if any.
            window: how many of the latest keys the layer sees, where the mask does not say it.
        """
        if weights is None:
            return
        row = weights[:, :, -1].float()
        spans = self._spans.to(row.device)  # a model spread over devices
        dropped = (max(0, spans.shape[1] - row.shape[-1]), 0)  # tokens before a sliding window are not in its cache
        self._by_layer[layer] = torch.einsum("bhs,bsn->bhn", pad(row, dropped), spans)
        hidden = pad(_hidden(weights.shape[-1], mask, window, row.device), dropped, value=True)
        self._unseen[layer] = (hidden[:, :, None] & spans.bool()).any(1)

    def stacked(self) -> Tensor:
        """(B, L, H, N) attention mass, in the order of ``layers``.

        Raises:
            UserError: a layer has yielded nothing, or does not see all tokens of an image.
        """
        silent = [layer for layer in self.layers if layer not in self._by_layer]
        if silent:
            raise UserError(
                f"Layer {silent[0]} yielded no attention under this backend; set vlm.attn_implementation to eager, or "
                "choose other layers (model.layers)."
            )
        device = self._by_layer[self.layers[0]].device
        unseen = torch.stack([self._unseen[layer].to(device) for layer in self.layers])
        if unseen.any():
            place, _, image = unseen.nonzero()[0].tolist()
            blind = [layer for layer, images in zip(self.layers, unseen, strict=True) if images.any()]
            raise UserError(
                f"Layer {self.layers[place]} does not see the whole of image {image + 1}: the prompt is longer than "
                f"its attention window. Leave out {layer_names(blind)} (model.layers), or show fewer or smaller images."
            )
        return torch.stack([self._by_layer[layer].to(device) for layer in self.layers], 1)


@contextmanager
def capture(
    attention_modules: Sequence[nn.Module | None],
    layers: Sequence[int],
    position_of_token: Tensor,
    num_candidates: int,
    backend: str,
) -> Iterator[AttentionMass]:
    """Collect attention mass from the forward passes inside the ``with`` block.

    Args:
        attention_modules: the decoder's attention modules, one per layer; None where a layer has none.
        layers: indices of the layers to watch.
        position_of_token: (B, S) position of the image that each prompt token belongs to, or -1.
        num_candidates: N.
        backend: the name of the model's attention implementation.

    Raises:
        UserError: a layer lies beyond the model or has no attention.
    """
    check_layers(layers, attention_modules)
    spans = (position_of_token[:, :, None] == torch.arange(num_candidates, device=position_of_token.device)).float()
    mass = AttentionMass(layers, spans)
    watched = {module: layer for layer in layers if (module := attention_modules[layer]) is not None}

    windows: dict[nn.Module, int | None] = {}

    def keep(module: nn.Module, inputs: Any, options: dict[str, Any], output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        mask = _argument(module, "attention_mask", inputs, options)
        mass.add(watched[module], weights, mask, windows.get(module))

    with ExitStack() as stack:
        for module in watched:
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        if backend != "eager":
            stack.enter_context(_last_rows(backend, set(watched), windows))
        yield mass


def _hidden(length: int, mask: Tensor | None, window: int | None, device: torch.device) -> Tensor:
    """(B or 1, K): which keys the last query cannot see, in no head.

    The weights themselves do not tell: those of a peaked head round to zero.
    """
    if mask is not None and mask.ndim == 4:
        row = mask[:, :, -1, :length]
        return (~row if row.dtype == torch.bool else row < torch.finfo(row.dtype).min / 2).all(1)
    return (torch.arange(length, device=device) < length - (window or length))[None]


def _argument(module: nn.Module, name: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """An argument of a module's forward pass, by name, however it was passed."""
    if name in options or not inputs:
        return options.get(name)
    return inspect.signature(module.forward).bind_partial(*inputs).arguments.get(name)


@contextmanager
def _last_rows(backend: str, watched: set[nn.Module], windows: dict[nn.Module, int | None]) -> Iterator[None]:
    """Let the attention function ``backend`` return the last query's row for the watched modules.

    ``windows`` receives the window of each, where the function applies one by itself.
    """

    def wrap(original: AttentionFunction) -> AttentionFunction:
        def with_last_row(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, Tensor | None]:
            output, weights = original(module, query, key, value, attention_mask, **options)
            if module in watched:
                windows[module] = options.get("sliding_window")
                if weights is None:
                    weights = last_query_attention(query, key, attention_mask, **options)
            return output, weights

        return with_last_row

    with wrapped_attention(backend, wrap):
        yield
