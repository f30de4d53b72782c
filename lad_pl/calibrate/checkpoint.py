"""The calibration in a Lightning checkpoint: kilobytes, no model weights, and nothing that executes on loading."""

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
from lad_pl.types import Calibration


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
