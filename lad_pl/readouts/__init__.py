"""Readouts: pure functions from evidence (and a calibration) to one score per candidate.

Every readout has the signature ``(evidence, calibration, settings) -> scores (B, N)`` and is registered by
:func:`readout` in :data:`READOUTS`, with what the analyses need to know about it; the choice is the argmax. Equation
numbers are those of "Logit-Attention Divergence" (ICML 2026). All arithmetic runs in the dtype of the evidence;
:meth:`lad_pl.types.Evidence.cpu` makes that double.
"""

from lad_pl.readouts.builtin import (
    agd,
    agd_head,
    agd_head_label_free,
    auto,
    batch_calibration,
    caption_attention,
    head_information,
    head_information_label_free,
    head_top,
    head_top_label_free,
    pride,
    pride_reference,
    purified_attention,
    raw_attention,
    supported,
    vanilla,
)
from lad_pl.readouts.equations import EPS, check_top_layers, corrected, log_bias, log_mass, posterior, top_layer_masses
from lad_pl.readouts.heads import centred_log_attention, head_score, head_weights, top_heads, weighted_heads
from lad_pl.readouts.registry import (
    FACTORS,
    READOUTS,
    Factor,
    HeadInformation,
    Readout,
    Scale,
    Score,
    check_names,
    log_probabilities,
    readout,
    scale_of,
)
from lad_pl.readouts.settings import HeadScore, ReadoutSettings, Recipe

__all__ = [
    "EPS",
    "FACTORS",
    "READOUTS",
    "Factor",
    "HeadInformation",
    "HeadScore",
    "Readout",
    "ReadoutSettings",
    "Recipe",
    "Scale",
    "Score",
    "agd",
    "agd_head",
    "agd_head_label_free",
    "auto",
    "batch_calibration",
    "caption_attention",
    "centred_log_attention",
    "check_names",
    "check_top_layers",
    "corrected",
    "head_information",
    "head_information_label_free",
    "head_score",
    "head_top",
    "head_top_label_free",
    "head_weights",
    "log_bias",
    "log_mass",
    "log_probabilities",
    "posterior",
    "pride",
    "pride_reference",
    "purified_attention",
    "raw_attention",
    "readout",
    "scale_of",
    "supported",
    "top_heads",
    "top_layer_masses",
    "vanilla",
    "weighted_heads",
]
