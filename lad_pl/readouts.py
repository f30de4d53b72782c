"""Readouts: pure functions from evidence (and a calibration) to one score per candidate.

Every readout has the signature ``(evidence, calibration, settings) -> scores (B, N)`` and is found by name in
:data:`READOUTS`; the choice is the argmax. Equation numbers are those of "Logit-Attention Divergence" (ICML 2026).
All arithmetic runs in the dtype of the evidence; :meth:`lad_pl.types.Evidence.cpu` makes that double.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.types import Calibration, Evidence

EPS = 1e-20
"""Floor of an attention mass before its logarithm, as in the published code."""

Recipe = Literal["reference", "paper"]


@dataclass(frozen=True)
class ReadoutSettings:
    """The free choices of the correction."""

    recipe: Recipe = "reference"
    """Where the arithmetic of the two differs: the published code (reference) or the printed equations (paper). The
    paper's spans are an option of their own: prompt.spans visual."""
    top_layers: int = 2
    """K: how many of the captured layers, those with the largest attention mass on the images, are read (eq. 8-9)."""
    temperature: float = 5.0
    """tau: sharpness of the posterior over images (eq. 12)."""
    head_exponent: float = 2.0
    """e: the head_information readouts weight a head by its information g to this power; 0 weights all the same."""
    batch: Literal["calibration", "test"] = "calibration"
    """What batch_calibration takes its mean over: the calibration passes, so that the score of a prompt does not depend
    on the other test prompts, or the tested prompts themselves, as its authors do."""

    def __post_init__(self) -> None:
        if self.top_layers < 1:
            raise UserError(f"readout.top_layers is {self.top_layers}; it must be at least 1.")
        if not self.temperature > 0:
            raise UserError(f"readout.temperature is {self.temperature}; it must be positive.")
        if not 0 <= self.head_exponent < math.inf:
            raise UserError(f"readout.head_exponent is {self.head_exponent}; it must be at least 0, and finite.")


Readout = Callable[[Evidence, Calibration, ReadoutSettings], Tensor]
READOUTS: dict[str, Readout] = {}
"""Every readout by its name."""


def readout(function: Readout) -> Readout:
    """Register a readout under its function's name."""
    READOUTS[function.__name__] = function
    return function


def check_names(names: Sequence[str]) -> None:
    """Raise a UserError that lists the known readouts if a name is none of them or none is given."""
    unknown = [name for name in names if name not in READOUTS]
    if unknown or not names:
        what = f"'{unknown[0]}' is not a readout" if unknown else "No readout is chosen"
        raise UserError(f"{what}; choose from {', '.join(READOUTS)}.")


# ---------------------------------------------------------------------------------------- from the logits alone


@readout
def vanilla(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """What the model says: the candidates' log-probabilities."""
    return evidence.log_probs


@readout
def pride(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """PriDe (Zheng et al. 2023), label-free: log-probabilities minus the log of the estimated position prior."""
    return evidence.log_probs - calibration.log_pride_prior


@readout
def pride_reference(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """PriDe as the published LAD code has it: the prior is the column mean of the log bias matrix."""
    return evidence.log_probs - log_bias(calibration, settings.recipe).mean(0)


@readout
def batch_calibration(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Batch calibration (Zhou et al. 2024), label-free: minus the log of the mean probability of each candidate.

    The mean runs over the calibration passes or over the tested prompts themselves: ``settings.batch``.
    """
    return evidence.log_probs - calibration.log_batch_prior


# ------------------------------------------------------------------------------- from attention, mean over heads


@readout
def raw_attention(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Attention mass on each image, mean over the K chosen layers; no prior is taken off."""
    masses, _ = _chosen_layers(evidence, calibration, settings)
    return masses.mean(1)


@readout
def purified_attention(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """The posterior pi over images (eq. 12)."""
    return posterior(evidence, calibration, settings)


@readout
def agd(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Attention-guided debiasing (eq. 13-14): log-probabilities minus the bias expected under the posterior."""
    return corrected(evidence.log_probs, posterior(evidence, calibration, settings), calibration, settings.recipe)


# ---------------------------------------------------------------------------- from attention, heads by what they know


@readout
def head_information(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Centred log attention, averaged over all heads with weight g^e; g is each head's information in nats."""
    return head_score(
        evidence.attention, calibration.log_attention_mean, calibration.head_information, settings.head_exponent
    )


@readout
def head_information_label_free(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """:func:`head_information` with g estimated without the calibration set's labels."""
    return head_score(
        evidence.attention,
        calibration.log_attention_mean,
        calibration.head_information_label_free,
        settings.head_exponent,
    )


@readout
def agd_head(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Eq. 13-14 with the posterior softmax(tau * head_information score) in place of eq. 12."""
    pi = (settings.temperature * head_information(evidence, calibration, settings)).softmax(-1)
    return corrected(evidence.log_probs, pi, calibration, settings.recipe)


@readout
def agd_head_label_free(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """:func:`agd_head` on the label-free score."""
    pi = (settings.temperature * head_information_label_free(evidence, calibration, settings)).softmax(-1)
    return corrected(evidence.log_probs, pi, calibration, settings.recipe)


# ------------------------------------------------------------------------------------------------- the equations


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
    masses, priors = _chosen_layers(evidence, calibration, settings)
    if settings.recipe == "reference":
        purified = _log(masses.mean(1)) - _log(priors).mean(1)
    else:
        purified = (_log(masses) - _log(priors)).mean(1)
    return (settings.temperature * purified).softmax(-1)


def corrected(log_probs: Tensor, pi: Tensor, calibration: Calibration, recipe: Recipe) -> Tensor:
    """log P_vis, (B, N): log P_obs minus the bias expected under the posterior ``pi`` (B, N) (eq. 13-14)."""
    bias = log_bias(calibration, recipe)
    if recipe == "reference":
        return log_probs - pi @ bias
    return log_probs - torch.logsumexp(_log(pi)[:, :, None] + bias, 1)


def head_score(attention: Tensor, log_attention_mean: Tensor, information: Tensor, exponent: float = 2.0) -> Tensor:
    """Weighted mean over heads of the centred log attention.

    Args:
        attention: (B, L, H, N) attention mass.
        log_attention_mean: (L, H, N) its mean logarithm over the calibration passes.
        information: (L, H) nats.
        exponent: of :func:`head_weights`.

    Returns:
        (B, N) scores in nats.
    """
    x = centred_log_attention(attention, log_attention_mean)
    return torch.einsum("lh,blhn->bn", head_weights(information, exponent), x)


def head_weights(information: Tensor, exponent: float = 2.0) -> Tensor:
    """Weight of each head, (L, H), its information to a power; where no head has any, all count the same. Sum 1."""
    largest = information.max()
    weights = (information / largest).pow(exponent) if largest > 0 else torch.ones_like(information)
    return weights / weights.sum()


def centred_log_attention(attention: Tensor, log_attention_mean: Tensor) -> Tensor:
    """x, (B, L, H, N): log attention mass minus its calibration mean, centred over the images."""
    x = _log(attention) - log_attention_mean
    return x - x.mean(-1, keepdim=True)


def _chosen_layers(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> tuple[Tensor, Tensor]:
    """Attention mass and prior, both (B, K, N), of each prompt's K layers with the largest mass (eq. 6-9)."""
    chosen = most_attentive_layers(evidence.layer_attention, settings.top_layers)
    masses = evidence.layer_attention.gather(1, chosen[:, :, None].expand(-1, -1, evidence.layer_attention.shape[-1]))
    return masses, calibration.attention_prior[chosen]


def most_attentive_layers(layer_attention: Tensor, top_layers: int) -> Tensor:
    """(B, K): the captured layers with the largest attention mass on the images, of (B, L, N) masses (eq. 8-9).

    Raises:
        UserError: fewer than K layers are captured.
    """
    if top_layers > layer_attention.shape[1]:
        raise UserError(
            f"readout.top_layers is {top_layers}, but only {layer_attention.shape[1]} layers are captured; lower it or "
            "capture more (model.layers)."
        )
    return layer_attention.sum(-1).topk(top_layers, 1).indices


def _log(mass: Tensor) -> Tensor:
    return mass.clamp_min(EPS).log()


def log_probabilities(readout: str, scores: Tensor, settings: ReadoutSettings) -> Tensor:
    """A readout's scores as log-probabilities of the N images.

    Args:
        readout: its name; it decides what the scores are: log-probabilities up to a constant, a posterior, attention
            mass, or nats (sharpened by tau, as in eq. 12).
        scores: (..., N).
        settings: holds tau.

    Returns:
        (..., N); each row sums to probability 1.
    """
    if readout in ("raw_attention", "purified_attention"):
        return scores.clamp_min(EPS).log().log_softmax(-1)
    if readout.startswith("head_information"):
        return (settings.temperature * scores).log_softmax(-1)
    return scores.log_softmax(-1)
