"""The paper's equations, "Logit-Attention Divergence" (ICML 2026), as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.readouts.settings import ReadoutSettings, Recipe
from lad_pl.types import Calibration, Evidence

EPS = 1e-20
"""Floor of an attention mass before its logarithm, as in the published code."""


def log_bias(calibration: Calibration, recipe: Recipe) -> Tensor:
    """Position bias log P_bias(j|i), (N, N): eq. 4-5.

    The visual gain, the largest advantage that standing at i gives candidate i over another, comes off the diagonal.
    The published code also shifts the whole matrix by one constant, on which no decision depends.
    """
    log_p_obs = calibration.log_p_obs_geometric if recipe == "reference" else calibration.log_p_obs_arithmetic
    diagonal = torch.eye(log_p_obs.shape[0], dtype=torch.bool, device=log_p_obs.device)
    advantage = log_p_obs.diagonal()[:, None] - log_p_obs
    log_gain = advantage.masked_fill(diagonal, -torch.inf).max()
    return log_p_obs - log_gain * diagonal


def posterior(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """pi, (B, N): softmax over images of tau times the purified attention (eq. 11-12)."""
    masses, priors = top_layer_masses(evidence.layer_attention, settings.top_layers, calibration.attention_prior)
    if settings.recipe == "reference":
        purified = log_mass(masses.mean(1)) - log_mass(priors).mean(1)
    else:
        purified = (log_mass(masses) - log_mass(priors)).mean(1)
    return (settings.temperature * purified).softmax(-1)


def corrected(log_probs: Tensor, pi: Tensor, calibration: Calibration, recipe: Recipe) -> Tensor:
    """log P_vis, (B, N): log P_obs minus the bias expected under the posterior ``pi`` (B, N) (eq. 13-14)."""
    bias = log_bias(calibration, recipe)
    if recipe == "reference":
        return log_probs - pi @ bias
    return log_probs - torch.logsumexp(log_mass(pi)[:, :, None] + bias, 1)


def top_layer_masses(layer_attention: Tensor, top_layers: int, *others: Tensor) -> tuple[Tensor, ...]:
    """Attention mass in each prompt's K layers with the largest mass on the images (eq. 8-9).

    Args:
        layer_attention: (B, L, N) attention mass, mean over heads.
        top_layers: K.
        others: of shape (B, L, N) or (L, N): read in the same layers.

    Returns:
        (B, K, N): of ``layer_attention``, then of each of the ``others``.

    Raises:
        UserError: fewer than K layers are captured.
    """
    check_top_layers(top_layers, layer_attention.shape[1])
    chosen = layer_attention.sum(-1).topk(top_layers, 1).indices
    index = chosen[:, :, None].expand(-1, -1, layer_attention.shape[-1])
    return tuple(masses.expand_as(layer_attention).gather(1, index) for masses in (layer_attention, *others))


def check_top_layers(top_layers: int, num_layers: int, setting: str = "readout.top_layers") -> None:
    """Raise a UserError, which names the setting, if fewer than K layers are captured."""
    if top_layers > num_layers:
        raise UserError(
            f"{setting} is {top_layers}, but only {num_layers} layers are captured; lower it or capture more "
            "(model.layers)."
        )


def log_mass(mass: Tensor) -> Tensor:
    """Log of an attention mass, or of a probability, not below :data:`EPS`."""
    return mass.clamp_min(EPS).log()
