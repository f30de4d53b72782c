"""The readouts that come with the toolkit."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.readouts.equations import corrected, log_bias, posterior, top_layer_masses
from lad_pl.readouts.heads import head_weights, top_heads, weighted_heads
from lad_pl.readouts.registry import READOUTS, Factor, log_probabilities, readout
from lad_pl.readouts.settings import ReadoutSettings
from lad_pl.types import Calibration, Evidence

_AGD: tuple[Factor, ...] = ("recipe", "top_layers", "temperature", "layers", "num_calibration")

# ---------------------------------------------------------------------------------------- from the logits alone


@readout(depends_on=(), per_head=False)
def vanilla(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """The model's own answer: the candidates' log-probabilities."""
    return evidence.log_probs


@readout(depends_on=("num_calibration",), per_head=False)
def pride(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """PriDe (Zheng et al. 2023), label-free: log-probabilities minus the log of the estimated position prior."""
    return evidence.log_probs - calibration.log_pride_prior


@readout(depends_on=("recipe", "num_calibration"), per_head=False)
def pride_reference(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """PriDe as the published LAD code has it: the prior is the column mean of the log bias matrix."""
    return evidence.log_probs - log_bias(calibration, settings.recipe).mean(0)


@readout(depends_on=("num_calibration",), per_head=False)
def batch_calibration(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Batch calibration (Zhou et al. 2024), label-free: minus the log of the mean probability of each candidate.

    The mean runs over the calibration prompts or over the tested prompts themselves: ``settings.batch``.
    """
    return evidence.log_probs - calibration.log_batch_prior


# ------------------------------------------------------------------------------- from attention, mean over heads


@readout(depends_on=("top_layers", "layers"), scale="attention_mass", per_head=False)
def raw_attention(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Attention mass on each image, mean over the K chosen layers; no prior is removed."""
    (masses,) = top_layer_masses(evidence.layer_attention, settings.top_layers)
    return masses.mean(1)


@readout(depends_on=("layers",), scale="attention_mass", captions=True)
def caption_attention(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Attention mass from the caption's tokens on each image, mean over all captured layers and heads.

    In-Context Re-ranking (arXiv 2410.02642) without its calibration: no prior is removed, and ``settings.rows`` does
    not matter.

    Raises:
        UserError: the evidence has no attention of the caption's tokens.
    """
    return evidence.of_rows("caption").attention.mean((1, 2))


# The temperature sharpens the posterior, and leaves the order of the images as it is.
@readout(depends_on=("recipe", "top_layers", "layers", "num_calibration"), scale="posterior", per_head=False)
def purified_attention(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """The posterior pi over images (eq. 12)."""
    return posterior(evidence, calibration, settings)


@readout(depends_on=_AGD, per_head=False)
def agd(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Attention-guided debiasing (eq. 13-14): log-probabilities minus the bias expected under the posterior."""
    return corrected(evidence.log_probs, posterior(evidence, calibration, settings), calibration, settings.recipe)


# ------------------------------------------------------------------- from attention, heads weighted by information

_HEADS: tuple[Factor, ...] = ("layers", "head_exponent", "num_calibration")
_TOP: tuple[Factor, ...] = ("layers", "top_heads", "head_score", "num_calibration")


# Where the scores are agd's, sweep holds what only these depend on at the run's own values.
@readout(depends_on=_HEADS, scale="nats", information="head_information")
def head_information(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Centred log attention, averaged over all heads with weight g^e; g is each head's information in nats.

    Labels are few and heads many, so chance alone makes some head look informative. With ``settings.head_fallback`` the
    scores are agd's (divided by tau, so that they are nats) unless samples left out of the calibration support the
    heads: :class:`~lad_pl.types.Diagnosis`.
    """
    if not supported("head_information", calibration, settings):
        return agd(evidence, calibration, settings) / settings.temperature
    weights = head_weights(calibration.head_information, settings.head_exponent)
    return weighted_heads(evidence.attention, calibration.log_attention_mean, weights)


@readout(depends_on=_HEADS, scale="nats", information="head_information_label_free")
def head_information_label_free(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """:func:`head_information` with g estimated without the calibration set's labels, and so without a test of them."""
    weights = head_weights(calibration.head_information_label_free, settings.head_exponent)
    return weighted_heads(evidence.attention, calibration.log_attention_mean, weights)


@readout(depends_on=_TOP, scale="nats")
def head_top(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Centred log attention, averaged over the ``settings.top_heads`` heads with the highest score.

    The score is ``settings.head_score``: that of QRHead (arXiv 2506.09944), of CoRe heads (arXiv 2510.02219), or the
    information in nats. ``settings.head_fallback`` as for :func:`head_information`.
    """
    if not supported("head_top", calibration, settings):
        return agd(evidence, calibration, settings) / settings.temperature
    weights = top_heads(_head_scores(calibration, settings, ""), settings.top_heads)
    return weighted_heads(evidence.attention, calibration.log_attention_mean, weights)


@readout(depends_on=_TOP, scale="nats")
def head_top_label_free(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """:func:`head_top` with scores estimated without the calibration set's labels, and so without a test of them."""
    weights = top_heads(_head_scores(calibration, settings, "_label_free"), settings.top_heads)
    return weighted_heads(evidence.attention, calibration.log_attention_mean, weights)


@readout(depends_on=("recipe", "temperature", *_HEADS), information="head_information")
def agd_head(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Eq. 13-14 with the posterior softmax(tau * head_information score) in place of eq. 12.

    agd itself where samples left out of the calibration do not support the heads, as for :func:`head_information`.
    """
    if not supported("head_information", calibration, settings):
        return agd(evidence, calibration, settings)
    pi = (settings.temperature * head_information(evidence, calibration, settings)).softmax(-1)
    return corrected(evidence.log_probs, pi, calibration, settings.recipe)


@readout(depends_on=("recipe", "temperature", *_HEADS), information="head_information_label_free")
def agd_head_label_free(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """:func:`agd_head` on the label-free score."""
    pi = (settings.temperature * head_information_label_free(evidence, calibration, settings)).softmax(-1)
    return corrected(evidence.log_probs, pi, calibration, settings.recipe)


# ------------------------------------------------------------------------------------- what the calibration supports


@readout(depends_on=(*_AGD, "head_exponent"))
def auto(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """The scores, as log-probabilities, of the readout that samples left out of the calibration support.

    That is vanilla, pride or agd, or head_information where it is better beyond noise:
    :func:`lad_pl.calibrate.diagnose`.

    Raises:
        UserError: the calibration is of an earlier version, which did not measure this.
    """
    name = _measured(calibration.diagnosis, "auto").auto
    settings = replace(settings, head_fallback=False)
    return log_probabilities(name, READOUTS[name].function(evidence, calibration, settings), settings)


def supported(name: str, calibration: Calibration, settings: ReadoutSettings) -> bool:
    """Whether a readout of single heads is read, and not agd in its place.

    Calibrations of earlier versions did not measure it: there it always is.
    """
    if not settings.head_fallback or calibration.diagnosis is None:
        return True
    return name in calibration.diagnosis.supported


def _head_scores(calibration: Calibration, settings: ReadoutSettings, suffix: str) -> Tensor:
    return _measured(getattr(calibration, f"head_{settings.head_score}{suffix}"), f"head_top{suffix}")


T = TypeVar("T")


def _measured(value: T | None, name: str) -> T:
    if value is None:
        raise UserError(
            f"{name} needs a calibration of this version of lad_pl; run fit again: it computes it from the evidence "
            "that is stored."
        )
    return value
