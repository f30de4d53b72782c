"""Does the attention know? How much logits, attention and single heads tell about samples that were left out.

Each calibration sample is scored by a calibration on the other ones. A readout's scores become probabilities by one
temperature, and the log-probability of the correct image, in nats, is what it tells; a readout that knows nothing gets
-log N. Chance is measured by a permutation test: every sample's targets are moved by a random number of places, the
same in all of its passes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lad_pl.readouts import READOUTS, ReadoutSettings, log_probabilities
from lad_pl.types import Calibration, Diagnosis, Evidence

LOGITS, ATTENTION, HEADS = "vanilla", "purified_attention", "head_information"
DIAGNOSED = (LOGITS, "pride", ATTENTION, "agd", HEADS, "head_top")
"""The readouts that are tried on samples left out."""
SIGNIFICANT = 0.05
"""Attention whose p-value is larger is said to be no better than chance."""
_SUPPORTED = 0.01
"""The p-value that readouts of single heads need: of many heads some look informative by chance."""
_FOLDS = 20
"""The most parts into which the samples are divided; up to so many, one sample is left out at a time."""
_DRAWS = 1000
_TEMPERATURES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0, 12.0)
"""Factors on the log-probabilities, of which each readout gets the best one."""
Statistics = Callable[[Evidence, Tensor, Tensor, Tensor], Calibration]


def diagnose(
    statistics: Statistics,
    evidence: Evidence,
    targets: Tensor,
    permutations: Tensor,
    sample_index: Tensor,
    settings: ReadoutSettings,
) -> Diagnosis:
    """Try the readouts on samples that are left out of the calibration.

    One readout is better than another if its mean log-likelihood is higher and its accuracy no lower; the readouts of
    single heads, whose choice of heads fits noise, have to be so by more than two standard errors over samples, unless
    they are correct in every pass, and at a p-value of at most 0.01. ``supported`` are those of them that are better
    than agd. ``auto`` starts from vanilla, goes on to pride if that is better, to agd if that is better and the
    attention is not at chance (p at most 0.05), and to head_information if that is better.

    Args:
        statistics: makes a calibration from passes: :func:`lad_pl.calibrate.statistics`.
        evidence: of P passes, on the CPU in double precision.
        targets: (P,) position of the correct image.
        permutations: (P, N) original index of the image at each position.
        sample_index: (P,) index of the sample of each pass.
        settings: of the readouts.

    Returns:
        An empty diagnosis where no sample can be left out.
    """
    left_out = _scores_left_out(statistics, evidence, targets, permutations, sample_index, settings)
    tables = {name: _aligned(log_probs, targets, sample_index) for name, log_probs in left_out.items()}
    if not tables:
        return Diagnosis()
    found = {name: _Tried(left_out[name], tables[name], targets) for name in DIAGNOSED}
    auto = LOGITS
    for name in ("pride", "agd"):
        known = name != "agd" or found[ATTENTION].p_value <= SIGNIFICANT
        auto = name if known and found[name].better(found[auto]) else auto
    heads = (HEADS, "head_top") if found[HEADS].p_value <= _SUPPORTED else ()
    supported = tuple(name for name in heads if found[name].clearly_better(found["agd"]))
    return Diagnosis(
        accuracy={name: of.accuracy for name, of in found.items()},
        log_likelihood={name: float(of.told.mean()) for name, of in found.items()},
        p_value={name: of.p_value for name, of in found.items()},
        supported=supported,
        auto=HEADS if found[HEADS].clearly_better(found[auto]) else auto,
    )


class _Tried:
    """What a readout tells about K samples that were left out."""

    def __init__(self, log_probs: Tensor, table: Tensor, targets: Tensor) -> None:
        self.accuracy = float((log_probs.argmax(-1) == targets).double().mean())
        self.told = table[table[:, :, 0].mean(1).argmax(), :, 0]
        """(K,) mean log-probability of the correct image."""
        self.p_value = _p_value(table)

    def better(self, other: _Tried) -> bool:
        return bool(self.told.mean() > other.told.mean()) and self.accuracy >= other.accuracy

    def clearly_better(self, other: _Tried) -> bool:
        difference = self.told - other.told
        beyond_noise = difference.mean() > 2 * difference.std() / math.sqrt(len(difference))
        return self.p_value <= _SUPPORTED and self.better(other) and bool(beyond_noise or self.accuracy == 1)


def _scores_left_out(
    statistics: Statistics,
    evidence: Evidence,
    targets: Tensor,
    permutations: Tensor,
    sample_index: Tensor,
    settings: ReadoutSettings,
) -> dict[str, Tensor]:
    """Log-probabilities (P, N) by readout, each pass scored by a calibration without its sample; {} if impossible."""
    n, samples = evidence.log_probs.shape[1], sample_index.unique()
    top_layers = min(settings.top_layers, evidence.layer_attention.shape[1])
    settings = replace(settings, top_layers=top_layers, head_fallback=False, rows="last")
    scores = {name: torch.empty_like(evidence.log_probs) for name in DIAGNOSED}
    for fold in range(min(len(samples), _FOLDS)):
        out = torch.isin(sample_index, samples[fold::_FOLDS])
        if len(targets[~out].unique()) < n:
            return {}
        calibration = statistics(evidence[~out], targets[~out], permutations[~out], sample_index[~out])
        for name, of_all in scores.items():
            readout = READOUTS[name].function
            of_all[out] = log_probabilities(name, readout(evidence[out], calibration, settings), settings)
    return scores


def _aligned(log_probs: Tensor, targets: Tensor, sample_index: Tensor) -> Tensor:
    """(G, K, N): at each of G temperatures, for each of K samples, what is told of the image r places after the target.

    The mean log-probability over the sample's passes; r = 0 is the correct image.
    """
    samples, of_pass = sample_index.unique(return_inverse=True)
    n = log_probs.shape[1]
    factors = torch.tensor(_TEMPERATURES, dtype=log_probs.dtype)
    sharpened = (factors[:, None, None] * log_probs).log_softmax(-1)
    shown = (targets[:, None] + torch.arange(n)) % n
    told = sharpened.gather(-1, shown.expand(len(factors), -1, -1))
    total = told.new_zeros(len(factors), len(samples), n).index_add_(1, of_pass, told)
    return total / of_pass.bincount()[:, None]


def _p_value(table: Tensor) -> float:
    """How often random targets are told as well as the correct ones, from :func:`_aligned`; at least 1 / 1001."""
    _, num_samples, n = table.shape
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, n, (_DRAWS, num_samples), generator=generator)
    chosen = one_hot(places, n).to(table.dtype) / num_samples
    chance = torch.einsum("dkn,gkn->dg", chosen, table).amax(1)
    told = table[:, :, 0].mean(1).max()
    return (1 + int((chance >= told - 1e-12).sum())) / (1 + _DRAWS)


# ------------------------------------------------------------------------------------------------------- in words


def lines(calibration: Calibration) -> list[str]:
    """What is printed after ``fit``: a line each on logits, attention and single heads."""
    diagnosis = calibration.diagnosis
    if diagnosis is None or not diagnosis.accuracy:
        return [
            "Whether the attention knows the answer cannot be told from one calibration sample; auto takes vanilla."
        ]
    chance = f"correct on calibration samples that were left out (chance {100 / calibration.num_candidates:.0f} %"
    return [
        f"Logits: {_correct(diagnosis, LOGITS, 'pride')} {chance}, p = {diagnosis.p_value[LOGITS]:.3f})",
        f"Attention: {_correct(diagnosis, ATTENTION, 'agd')}{_verdict(diagnosis, ATTENTION)}",
        f"Single heads: {_correct(diagnosis, HEADS, 'head_top')}{_verdict(diagnosis, HEADS)}; auto takes "
        f"{diagnosis.auto}",
    ]


def warning(calibration: Calibration) -> str | None:
    """One line if the calibration samples do not show that the attention knows the answer; None if they do."""
    diagnosis = calibration.diagnosis
    if diagnosis is None or not diagnosis.p_value or diagnosis.p_value[ATTENTION] <= SIGNIFICANT:
        return None
    best = f"take {diagnosis.auto}, as auto does, " if diagnosis.auto != "agd" else ""
    return (
        f"On {calibration.num_samples} calibration samples the attention, averaged over heads, finds the correct image "
        f"no better than chance ({_correct(diagnosis, ATTENTION)}, p = {diagnosis.p_value[ATTENTION]:.2f}); agd may "
        f"lower the accuracy: {best}{'or ' if best else ''}calibrate on more samples (data.num_calibration)."
    )


def warn_of_attention(calibration: Calibration, settings: ReadoutSettings, readouts: Sequence[str]) -> None:
    """Give that warning if one of the named readouts reads attention that is not known to tell."""
    calibration = calibration.of_rows(settings.rows)
    text = warning(calibration)
    known = ("auto", *(calibration.diagnosis.supported if calibration.diagnosis else ()))
    if text and any("layers" in READOUTS[name].depends_on for name in readouts if name not in known):
        warnings.warn(text, stacklevel=2)


def _correct(diagnosis: Diagnosis, *names: str) -> str:
    return ", ".join(f"{name} {100 * diagnosis.accuracy[name]:.0f} %" for name in names)


def _verdict(diagnosis: Diagnosis, name: str) -> str:
    p = diagnosis.p_value[name]
    return f" (p = {p:.3f}{': no better than chance' if p > SIGNIFICANT else ''})"
