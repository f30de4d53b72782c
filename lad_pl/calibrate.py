"""From the evidence of the calibration passes to a :class:`~lad_pl.types.Calibration`, and its checkpoint file.

A checkpoint is kilobytes: no model weights, and nothing that executes on loading.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.provenance import first_difference, short_digest
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


# ---------------------------------------------------------------------------------------------------- the checkpoint


def check_calibration(provenance: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a calibration of another model, prompt, number of images or choice of layers.

    Args:
        provenance: of the calibration.
        settings: the fields of ``provenance`` that must agree, with their present values.

    Raises:
        UserError: one differs.
    """
    difference = first_difference({name: provenance.get(name) for name in settings}, settings)
    if difference:
        raise UserError(
            f"The calibration does not match this configuration ({difference}). Run fit with this configuration, "
            "or test with the one that the calibration was made with."
        )


def pack(calibration: Calibration, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a calibration in a Lightning checkpoint, with a digest of all of them."""
    state, recorded = calibration.state(), dict(provenance)
    return {"calibration": state, "provenance": recorded, "digest": _digest(state, recorded)}


def unpack(checkpoint: Mapping[str, Any], source: str) -> tuple[Calibration, dict[str, Any]]:
    """Calibration and provenance from a loaded checkpoint.

    Raises:
        UserError: it holds none, a damaged one, or one of another version of this toolkit.
    """
    state, provenance = checkpoint.get("calibration"), checkpoint.get("provenance")
    if not isinstance(state, dict) or not isinstance(provenance, dict) or "calibration_samples" not in provenance:
        raise UserError(f"{source} is no calibration of this toolkit; make one with fit.")
    if {*state} != {item.name for item in fields(Calibration)}:
        raise UserError(f"{source} was written by another version of lad_pl; run fit again.")
    # Earlier versions wrote no digest.
    if not _is_possible(state) or checkpoint.get("digest", written := _digest(state, provenance)) != written:
        raise UserError(f"{source} is damaged: its values are not those that were written; run fit again.")
    return Calibration(**state), provenance


def load_calibration(path: str | Path) -> tuple[Calibration, dict[str, Any]]:
    """Read a calibration file.

    Raises:
        UserError: the file is missing, unreadable, damaged, or no calibration.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no calibration at {path}; run fit first with the same configuration, or name a calibration with "
            "--ckpt_path."
        )
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums of the archive
            if archive.testzip() is not None:
                raise ValueError("a checksum does not fit")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises has no common type
        raise UserError(f"{path} cannot be read as a calibration, it may be damaged; run fit again.") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is no calibration of this toolkit; make one with fit.")
    return unpack(checkpoint, str(path))


def _digest(state: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Of a calibration's values and of its provenance."""
    digest = hashlib.sha256(short_digest(provenance, 64).encode())
    for name, value in sorted(state.items()):
        content = value.numpy().tobytes() if isinstance(value, Tensor) else b""
        described = (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value
        digest.update(f"{name} {described} ".encode() + content)
    return digest.hexdigest()


def _is_possible(state: Mapping[str, Any]) -> bool:
    """Whether a calibration's values fit together: (N, N), (L, N), (N,), (L, H, N) and (L, H), all finite."""
    *tensors, count = (state[item.name] for item in fields(Calibration))
    if not all(isinstance(value, Tensor) and value.is_floating_point() and value.isfinite().all() for value in tensors):
        return False
    layers, heads, n = (*state["log_attention_mean"].shape, 0, 0, 0)[:3]
    shapes = [(n, n), (n, n), (layers, n), (n,), (n,), (layers, heads, n), (layers, heads), (layers, heads)]
    return [tuple(value.shape) for value in tensors] == shapes and isinstance(count, int) and count > 0
