"""Single heads: their log attention, and their weighted mean."""

from __future__ import annotations

import torch
from torch import Tensor

from lad_pl.readouts.equations import log_mass


def head_score(attention: Tensor, log_attention_mean: Tensor, information: Tensor, exponent: float = 2.0) -> Tensor:
    """Weighted mean over heads of the centred log attention.

    Args:
        attention: (B, L, H, N) attention mass.
        log_attention_mean: (L, H, N) its mean logarithm over the calibration prompts.
        information: (L, H) nats.
        exponent: of :func:`head_weights`.

    Returns:
        (B, N) scores in nats.
    """
    return weighted_heads(attention, log_attention_mean, head_weights(information, exponent))


def weighted_heads(attention: Tensor, log_attention_mean: Tensor, weights: Tensor) -> Tensor:
    """Sum over heads of the centred log attention times ``weights`` (L, H): scores (B, N) in nats."""
    return torch.einsum("lh,blhn->bn", weights, centred_log_attention(attention, log_attention_mean))


def head_weights(information: Tensor, exponent: float = 2.0) -> Tensor:
    """Weight of each head, (L, H), its information to a power; where no head has any, all count the same. Sum 1."""
    largest = information.max()
    weights = (information / largest).pow(exponent) if largest > 0 else torch.ones_like(information)
    return weights / weights.sum()


def centred_log_attention(attention: Tensor, log_attention_mean: Tensor) -> Tensor:
    """x, (B, L, H, N): log attention mass minus its calibration mean, centred over the images."""
    x = log_mass(attention) - log_attention_mean
    return x - x.mean(-1, keepdim=True)


def top_heads(scores: Tensor, count: int) -> Tensor:
    """Weights (L, H) of the ``count`` heads with the highest ``scores`` (L, H), all the same.

    The weights sum to 1; where there are fewer heads, all count. Of equal scores the earlier layer and head comes
    first.
    """
    order = scores.flatten().argsort(descending=True, stable=True)
    weights = torch.zeros_like(scores).flatten()
    weights[order[:count]] = 1 / min(count, len(order))
    return weights.view_as(scores)
