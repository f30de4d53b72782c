"""Calibration checkpoints: kilobytes, no model weights, nothing that executes on loading."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lad_pl.errors import UserError
from lad_pl.types import Calibration


def pack(calibration: Calibration, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that a Lightning checkpoint of ours holds."""
    return {"calibration": calibration.state(), "provenance": dict(provenance)}


def unpack(checkpoint: Mapping[str, Any], source: str) -> tuple[Calibration, dict[str, Any]]:
    """Calibration and provenance from a loaded checkpoint.

    Raises:
        UserError: it holds none, or one of another version of this toolkit.
    """
    provenance = checkpoint.get("provenance")
    if "calibration" not in checkpoint or not isinstance(provenance, dict) or "calibration_samples" not in provenance:
        raise UserError(f"{source} is no calibration of this toolkit; make one with fit.")
    try:
        return Calibration(**checkpoint["calibration"]), provenance
    except TypeError as error:
        raise UserError(f"{source} was written by another version of lad_pl; run fit again.") from error


def load_calibration(path: str | Path) -> tuple[Calibration, dict[str, Any]]:
    """Read a calibration file.

    Raises:
        UserError: the file is missing, unreadable, or no calibration.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no calibration at {path}; run fit first with the same configuration, or name a calibration with "
            "--ckpt_path."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as a calibration; run fit again.") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is no calibration of this toolkit; make one with fit.")
    return unpack(checkpoint, str(path))
