"""Scores of single heads from the calibration passes: which heads tell the correct image."""

from __future__ import annotations

import torch
from torch import Tensor

CORE_TEMPERATURE = 1e-3
"""t of :func:`core_score`, in attention mass: the size of the masses that a head puts on an image."""


def information(x: Tensor, targets: Tensor) -> Tensor:
    """g, (L, H), in nats: log N plus the mean log-probability of the target under softmax of ``x`` (P, L, H, N).

    0 is what a head that ignores the images gets; log N is the most there is. Negative values count as 0.
    """
    log_p = x.log_softmax(-1)
    return (torch.tensor(float(x.shape[-1]), dtype=x.dtype).log() + _of_target(log_p, targets).mean(0)).clamp_min(0)


def qr_score(attention: Tensor, targets: Tensor) -> Tensor:
    """QRHead's score (arXiv 2506.09944), (L, H): mean attention mass (P, L, H, N) on the correct image."""
    return _of_target(attention, targets).mean(0)


def core_score(attention: Tensor, targets: Tensor) -> Tensor:
    """CoRe's contrastive score (arXiv 2510.02219), (L, H): mean of ``exp(a_target / t) / sum_j exp(a_j / t)``.

    ``a`` is the attention mass (P, L, H, N); t is :data:`CORE_TEMPERATURE`.
    """
    return _of_target((attention / CORE_TEMPERATURE).softmax(-1), targets).mean(0)


def _of_target(values: Tensor, targets: Tensor) -> Tensor:
    """(P, L, H): ``values`` (P, L, H, N) at the position of the correct image (P,)."""
    return values.gather(-1, targets.view(-1, 1, 1, 1).expand(*values.shape[:3], 1)).squeeze(-1)
