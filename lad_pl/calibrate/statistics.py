"""The statistics of the calibration passes."""

from __future__ import annotations

import torch
from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.readouts import EPS, centred_log_attention, head_score
from lad_pl.types import Calibration, Evidence

LABEL_FREE_ROUNDS = 3


def calibrate(evidence: Evidence, targets: Tensor, permutations: Tensor, sample_index: Tensor) -> Calibration:
    """Reduce the evidence of the calibration passes to the statistics that the readouts need.

    Args:
        evidence: of P passes: log-probabilities (P, N) and attention mass (P, L, H, N).
        targets: (P,) position of the correct image.
        permutations: (P, N) original index of the image at each position.
        sample_index: (P,) index of the sample of each pass.

    Raises:
        UserError: some position never holds the correct image, or the evidence is not finite.
    """
    evidence = evidence.cpu()
    targets, permutations, sample_index = targets.cpu(), permutations.cpu(), sample_index.cpu()
    _check(evidence, targets)
    log_attention_mean = evidence.attention.clamp_min(EPS).log().mean(0)
    x = centred_log_attention(evidence.attention, log_attention_mean)
    return Calibration(
        log_p_obs_geometric=_by_target(evidence.log_probs, targets),
        log_p_obs_arithmetic=_by_target(evidence.log_probs.exp(), targets).clamp_min(EPS).log(),
        attention_prior=evidence.layer_attention.mean(0),
        log_batch_prior=log_mean_probability(evidence.log_probs),
        log_pride_prior=_pride_prior(evidence.log_probs, sample_index).log(),
        log_attention_mean=log_attention_mean,
        head_information=information(x, targets),
        head_information_label_free=_label_free(evidence.attention, log_attention_mean, x, permutations, sample_index),
        num_samples=len(sample_index.unique()),
    )


def log_mean_probability(log_probs: Tensor) -> Tensor:
    """(N,): log of the mean over prompts of each candidate's probability, from log-probabilities (P, N)."""
    return log_probs.logsumexp(0) - torch.tensor(len(log_probs), dtype=log_probs.dtype).log()


def information(x: Tensor, targets: Tensor) -> Tensor:
    """g, (L, H), in nats: log N plus the mean log-probability of the target under softmax of ``x`` (P, L, H, N).

    0 is what a head that ignores the images gets; log N is the most there is. Negative values count as 0.
    """
    log_p = x.log_softmax(-1)
    of_target = log_p.gather(-1, targets.view(-1, 1, 1, 1).expand(*log_p.shape[:3], 1)).squeeze(-1)
    return (torch.tensor(float(x.shape[-1]), dtype=x.dtype).log() + of_target.mean(0)).clamp_min(0)


def _label_free(
    attention: Tensor, log_attention_mean: Tensor, x: Tensor, permutations: Tensor, sample_index: Tensor
) -> Tensor:
    """Information per head (L, H) with each sample's target inferred by vote of its own shifts."""
    weights = torch.zeros(attention.shape[1:3], dtype=attention.dtype)  # no head known yet: all count the same
    for _ in range(LABEL_FREE_ROUNDS):
        scores = head_score(attention, log_attention_mean, weights)
        by_image = torch.zeros_like(scores).scatter(1, permutations, scores)
        guessed = torch.zeros(len(scores), dtype=torch.long)
        for sample in sample_index.unique():
            members = sample_index == sample
            image = by_image[members].mean(0).argmax()
            guessed[members] = (permutations[members] == image).long().argmax(1)
        weights = information(x, guessed)
    return weights


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
