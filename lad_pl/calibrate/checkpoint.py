"""The calibration in a Lightning checkpoint: kilobytes, no model weights, and nothing that executes on loading."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.provenance import first_difference, short_digest
from lad_pl.types import Calibration, Diagnosis

_ROWS = ("caption", "both")
"""Entries that are calibrations themselves."""
_REQUIRED = {item.name for item in fields(Calibration) if item.default is MISSING} | {"num_samples"}
"""The entries that calibrations of every version have."""


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
    if not {*state} >= _REQUIRED or not {*state} <= {item.name for item in fields(Calibration)}:
        raise UserError(f"{source} was written by another version of lad_pl; run fit again.")
    # Earlier versions wrote no digest.
    if not _is_possible(state) or checkpoint.get("digest", written := _digest(state, provenance)) != written:
        raise UserError(f"{source} is damaged: its values are not those that were written; run fit again.")
    return _calibration(state), provenance


def _calibration(state: Mapping[str, Any]) -> Calibration:
    nested = {name: _calibration(state[name]) for name in _ROWS if name in state}
    diagnosis = {"diagnosis": Diagnosis(**state["diagnosis"])} if "diagnosis" in state else {}
    return Calibration(**{**state, **nested, **diagnosis})


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
    for name, value in sorted(_flat(state)):
        content = value.numpy().tobytes() if isinstance(value, Tensor) else b""
        described = (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value
        digest.update(f"{name} {described} ".encode() + content)
    return digest.hexdigest()


def _flat(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_possible(state: Mapping[str, Any]) -> bool:
    """Whether a calibration's values fit together, all finite, those of its caption rows included."""
    values = {name: value for name, value in state.items() if name not in ("num_samples", "diagnosis", *_ROWS)}
    if not all(
        isinstance(value, Tensor) and value.is_floating_point() and value.isfinite().all() for value in values.values()
    ):
        return False
    layers, heads, n = (*state["log_attention_mean"].shape, 0, 0, 0)[:3]
    shapes = {
        **dict.fromkeys(("log_p_obs_geometric", "log_p_obs_arithmetic"), (n, n)),
        **dict.fromkeys(("log_batch_prior", "log_pride_prior"), (n,)),
        "attention_prior": (layers, n),
        "log_attention_mean": (layers, heads, n),
    }
    fitting = all(tuple(value.shape) == shapes.get(name, (layers, heads)) for name, value in values.items())
    counted = isinstance(state["num_samples"], int) and state["num_samples"] > 0
    nested = all(isinstance(state[name], dict) and {*state[name]} >= _REQUIRED for name in _ROWS if name in state)
    return (
        fitting
        and counted
        and nested
        and _is_diagnosis(state.get("diagnosis", {}))
        and all(_is_possible(state[name]) for name in _ROWS if name in state)
    )


def _is_diagnosis(value: Any) -> bool:
    return isinstance(value, dict) and {*value} <= {item.name for item in fields(Diagnosis)}
