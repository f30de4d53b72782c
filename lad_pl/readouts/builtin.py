"""The readouts that come with the toolkit."""

from __future__ import annotations

from torch import Tensor

from lad_pl.readouts.equations import corrected, log_bias, posterior, top_layer_masses
from lad_pl.readouts.heads import head_score
from lad_pl.readouts.registry import ReadoutSettings, readout
from lad_pl.types import Calibration, Evidence

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


# The temperature sharpens the posterior, and leaves the order of the images as it is.
@readout(depends_on=("recipe", "top_layers", "layers", "num_calibration"), scale="posterior", per_head=False)
def purified_attention(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """The posterior pi over images (eq. 12)."""
    return posterior(evidence, calibration, settings)


@readout(depends_on=("recipe", "top_layers", "temperature", "layers", "num_calibration"), per_head=False)
def agd(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Attention-guided debiasing (eq. 13-14): log-probabilities minus the bias expected under the posterior."""
    return corrected(evidence.log_probs, posterior(evidence, calibration, settings), calibration, settings.recipe)


# ------------------------------------------------------------------- from attention, heads weighted by information


@readout(depends_on=("layers", "head_exponent", "num_calibration"), scale="nats", information="head_information")
def head_information(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Centred log attention, averaged over all heads with weight g^e; g is each head's information in nats."""
    return head_score(
        evidence.attention, calibration.log_attention_mean, calibration.head_information, settings.head_exponent
    )


@readout(
    depends_on=("layers", "head_exponent", "num_calibration"), scale="nats", information="head_information_label_free"
)
def head_information_label_free(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """:func:`head_information` with g estimated without the calibration set's labels."""
    return head_score(
        evidence.attention,
        calibration.log_attention_mean,
        calibration.head_information_label_free,
        settings.head_exponent,
    )


@readout(
    depends_on=("recipe", "temperature", "layers", "head_exponent", "num_calibration"),
    information="head_information",
)
def agd_head(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """Eq. 13-14 with the posterior softmax(tau * head_information score) in place of eq. 12."""
    pi = (settings.temperature * head_information(evidence, calibration, settings)).softmax(-1)
    return corrected(evidence.log_probs, pi, calibration, settings.recipe)


@readout(
    depends_on=("recipe", "temperature", "layers", "head_exponent", "num_calibration"),
    information="head_information_label_free",
)
def agd_head_label_free(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
    """:func:`agd_head` on the label-free score."""
    pi = (settings.temperature * head_information_label_free(evidence, calibration, settings)).softmax(-1)
    return corrected(evidence.log_probs, pi, calibration, settings.recipe)
