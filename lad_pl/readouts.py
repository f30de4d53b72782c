"""Readouts: pure functions from evidence (and a calibration) to one score per candidate.

Every readout has the signature ``(evidence, calibration, settings) -> scores (B, N)`` and is registered by
:func:`readout` in :data:`READOUTS`, with what the analyses need to know about it; the choice is the argmax. Equation
numbers are those of "Logit-Attention Divergence" (ICML 2026). All arithmetic runs in the dtype of the evidence;
:meth:`lad_pl.types.Evidence.cpu` makes that double.
"""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from lad_pl.errors import UserError, check_at_least
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
    """What batch_calibration takes its mean over: the calibration prompts, so that the score of a prompt does not
    depend on the other test prompts, or the tested prompts themselves, as its authors do."""

    def __post_init__(self) -> None:
        check_at_least(1, **{"readout.top_layers": self.top_layers})
        if not 0 < self.temperature < math.inf:
            raise UserError(f"readout.temperature is {self.temperature}; it must be positive, and finite.")
        if not 0 <= self.head_exponent < math.inf:
            raise UserError(f"readout.head_exponent is {self.head_exponent}; it must be at least 0, and finite.")


Score = Callable[[Evidence, Calibration, ReadoutSettings], Tensor]
Factor = Literal["recipe", "top_layers", "temperature", "layers", "head_exponent", "num_calibration"]
FACTORS: tuple[Factor, ...] = get_args(Factor)
"""What the choices of a readout may depend on: fields of :class:`ReadoutSettings`, which layers are captured, and how
many samples are calibrated on."""
Scale = Literal["log_probability", "posterior", "attention_mass", "nats"]
HeadInformation = Literal["head_information", "head_information_label_free"]


@dataclass(frozen=True)
class Readout:
    """A readout, called like its function, and what the analyses need to know about it.

    Raises:
        UserError: ``depends_on`` or ``scale`` names something unknown.
    """

    name: str
    function: Score
    depends_on: tuple[Factor, ...] = FACTORS
    """The factors that can change its choices; ``sweep`` varies no other."""
    scale: Scale = "log_probability"
    """What its scores are: log-probabilities up to a constant, a posterior, attention mass, or nats."""
    per_head: bool = True
    """Whether it reads the attention of every head; False: evidence with the mean over heads (H = 1) is enough."""
    captions: bool = False
    """Whether it reads the attention of the caption's tokens, which evidence of earlier versions lacks."""
    information: HeadInformation | None = None
    """The field of the calibration whose information weights the heads, where the score is :func:`head_score` (scale
    nats) or eq. 13-14 with softmax(tau * head_score) as posterior: ``sweep`` computes these together."""

    def __post_init__(self) -> None:
        unknown = [factor for factor in self.depends_on if factor not in FACTORS]
        if unknown:
            raise UserError(f"Readout {self.name} depends on '{unknown[0]}'; choose from {', '.join(FACTORS)}.")
        if self.scale not in get_args(Scale):
            raise UserError(f"Readout {self.name} has scale '{self.scale}'; choose from {', '.join(get_args(Scale))}.")

    def __call__(self, evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
        """Scores (B, N)."""
        return self.function(evidence, calibration, settings)


class _Registry(UserDict[str, Readout]):
    def __setitem__(self, name: str, function: Score) -> None:
        """Wrap a plain function as a readout with the safe defaults."""
        super().__setitem__(name, function if isinstance(function, Readout) else Readout(name, function))


READOUTS: MutableMapping[str, Readout] = _Registry()
"""Every readout by its name."""


@overload
def readout(function: Score) -> Score: ...
@overload
def readout(
    *,
    depends_on: Sequence[Factor] = ...,
    scale: Scale = ...,
    per_head: bool = ...,
    captions: bool = ...,
    information: HeadInformation | None = ...,
) -> Callable[[Score], Score]: ...
def readout(
    function: Score | None = None,
    *,
    depends_on: Sequence[Factor] = FACTORS,
    scale: Scale = "log_probability",
    per_head: bool = True,
    captions: bool = False,
    information: HeadInformation | None = None,
) -> Score | Callable[[Score], Score]:
    """Register a function as a readout under its name, as ``@readout`` or with arguments: fields of :class:`Readout`.

    The function itself stays as it is. The defaults are safe for any readout, and slow in ``sweep``: it depends on
    every factor and reads every head.

    Raises:
        UserError: the function has no name, or an argument names something unknown.
    """

    def register(function: Score) -> Score:
        name = getattr(function, "__name__", None)
        if name is None:
            raise UserError(f"{function!r} has no name to register it by; write READOUTS['name'] = it.")
        READOUTS[name] = Readout(name, function, tuple(depends_on), scale, per_head, captions, information)
        return function

    return register if function is None else register(function)


def scale_of(name: str) -> Scale:
    """What the scores of a readout or method are; log-probabilities where no readout of that name is registered."""
    return READOUTS[name].scale if name in READOUTS else "log_probability"


def check_names(names: Sequence[str]) -> None:
    """Raise a UserError that lists the known readouts if a name is none of them or none is given."""
    unknown = [name for name in names if name not in READOUTS]
    if unknown or not names:
        what = f"'{unknown[0]}' is not a readout" if unknown else "No readout is chosen"
        raise UserError(f"{what}; choose from {', '.join(READOUTS)}.")


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

    In-Context Re-ranking (arXiv 2410.02642) without its calibration; no prior is removed.

    Raises:
        UserError: the evidence has no attention of the caption's tokens.
    """
    if evidence.caption_attention is None:
        raise UserError(
            "The evidence has no attention of the captions' tokens. If an earlier version of lad_pl stored it, run the "
            "command that did again (fit, test, validate or predict) with --model.overwrite true; otherwise some "
            "caption's tokens cannot be told from the text around it or see no later image: choose other readouts."
        )
    return evidence.caption_attention.mean((1, 2))


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
    masses, priors = top_layer_masses(evidence.layer_attention, settings.top_layers, calibration.attention_prior)
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
        log_attention_mean: (L, H, N) its mean logarithm over the calibration prompts.
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


def _log(mass: Tensor) -> Tensor:
    return mass.clamp_min(EPS).log()


def log_probabilities(readout: str, scores: Tensor, settings: ReadoutSettings) -> Tensor:
    """A readout's scores as log-probabilities of the N images.

    Args:
        readout: its name; its scale decides: nats are sharpened by tau, as in eq. 12.
        scores: (..., N).
        settings: holds tau.

    Returns:
        (..., N); each row sums to probability 1.
    """
    scale = scale_of(readout)
    if scale in ("posterior", "attention_mass"):
        scores = _log(scores)
    elif scale == "nats":
        scores = settings.temperature * scores
    return scores.log_softmax(-1)
