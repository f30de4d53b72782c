"""The statistics of the calibration passes."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from lad_pl.calibrate.diagnosis import diagnose
from lad_pl.calibrate.head_scores import core_score, information, qr_score
from lad_pl.errors import UserError
from lad_pl.readouts import EPS, ReadoutSettings, centred_log_attention, head_score
from lad_pl.types import Calibration, Evidence, Rows

LABEL_FREE_ROUNDS = 3


def calibrate(
    evidence: Evidence,
    targets: Tensor,
    permutations: Tensor,
    sample_index: Tensor,
    settings: ReadoutSettings = ReadoutSettings(),  # noqa: B008 (frozen)
) -> Calibration:
    """Reduce the evidence of the calibration passes to the statistics that the readouts need.

    Args:
        evidence: of P passes: log-probabilities (P, N) and attention mass (P, L, H, N).
        targets: (P,) position of the correct image.
        permutations: (P, N) original index of the image at each position.
        sample_index: (P,) index of the sample of each pass.
        settings: with which the readouts are tried on samples that are left out (:func:`diagnose`).

    Raises:
        UserError: some position never holds the correct image, or the evidence is not finite.
    """
    evidence = evidence.cpu()
    passes = (targets.cpu(), permutations.cpu(), sample_index.cpu())
    rows: tuple[Rows, ...] = ("last",) if evidence.caption_attention is None else get_args(Rows)
    of_rows = {name: _diagnosed(evidence.of_rows(name), *passes, settings) for name in rows}
    return replace(of_rows["last"], caption=of_rows.get("caption"), both=of_rows.get("both"))


def _diagnosed(
    evidence: Evidence, targets: Tensor, permutations: Tensor, sample_index: Tensor, settings: ReadoutSettings
) -> Calibration:
    calibration = statistics(evidence, targets, permutations, sample_index)
    return replace(calibration, diagnosis=diagnose(statistics, evidence, targets, permutations, sample_index, settings))


def statistics(evidence: Evidence, targets: Tensor, permutations: Tensor, sample_index: Tensor) -> Calibration:
    """The statistics of the last token's attention alone, without a diagnosis; arguments as of :func:`calibrate`."""
    _check(evidence, targets)
    log_attention_mean = evidence.attention.clamp_min(EPS).log().mean(0)
    x = centred_log_attention(evidence.attention, log_attention_mean)
    guessed = _inferred_targets(evidence.attention, log_attention_mean, x, permutations, sample_index)
    return Calibration(
        log_p_obs_geometric=_by_target(evidence.log_probs, targets),
        log_p_obs_arithmetic=_by_target(evidence.log_probs.exp(), targets).clamp_min(EPS).log(),
        attention_prior=evidence.layer_attention.mean(0),
        log_batch_prior=log_mean_probability(evidence.log_probs),
        log_pride_prior=_pride_prior(evidence.log_probs, sample_index).log(),
        log_attention_mean=log_attention_mean,
        head_information=information(x, targets),
        head_information_label_free=information(x, guessed),
        num_samples=len(sample_index.unique()),
        head_qr=qr_score(evidence.attention, targets),
        head_core=core_score(evidence.attention, targets),
        head_qr_label_free=qr_score(evidence.attention, guessed),
        head_core_label_free=core_score(evidence.attention, guessed),
    )


def log_mean_probability(log_probs: Tensor) -> Tensor:
    """(N,): log of the mean over prompts of each candidate's probability, from log-probabilities (P, N)."""
    return log_probs.logsumexp(0) - torch.tensor(len(log_probs), dtype=log_probs.dtype).log()


def _inferred_targets(
    attention: Tensor, log_attention_mean: Tensor, x: Tensor, permutations: Tensor, sample_index: Tensor
) -> Tensor:
    """(P,) target of each pass, inferred by vote of its sample's own shifts."""
    weights = torch.zeros(attention.shape[1:3], dtype=attention.dtype)  # no head known yet: all count the same
    guessed = torch.zeros(len(attention), dtype=torch.long)
    for _ in range(LABEL_FREE_ROUNDS):
        scores = head_score(attention, log_attention_mean, weights)
        by_image = torch.zeros_like(scores).scatter(1, permutations, scores)
        for sample in sample_index.unique():
            members = sample_index == sample
            image = by_image[members].mean(0).argmax()
            guessed[members] = (permutations[members] == image).long().argmax(1)
        weights = information(x, guessed)
    return guessed


def _by_target(values: Tensor, targets: Tensor) -> Tensor:
    """(N, N): row i is the mean of ``values`` (P, N) over the passes with the truth at position i."""
    return torch.stack([values[targets == position].mean(0) for position in range(values.shape[1])])


def _pride_prior(log_probs: Tensor, sample_index: Tensor) -> Tensor:
    """(N,): mean over samples of the softmax of the mean log-probability over the sample's shifts."""
    shifts = [log_probs[sample_index == sample] for sample in sample_index.unique()]
    return torch.stack([of_sample.mean(0).softmax(-1) for of_sample in shifts]).mean(0)


def _check(evidence: Evidence, targets: Tensor) -> None:
    if not (evidence.log_probs.isfinite().all() and evidence.attention.isfinite().all()):
        raise UserError("The calibration passes yield values that are not finite; try vlm.dtype float32 or bfloat16.")
    missing = set(range(evidence.log_probs.shape[1])) - set(targets.tolist())
    if missing:
        raise UserError(
            f"No calibration pass has the correct image at position {min(missing)}; every calibration sample needs an "
            "index and all of its cyclic shifts."
        )
