"""Fixtures shared by the tests of the analyses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lad_pl.readouts import READOUTS, ReadoutSettings, readout
from lad_pl.types import Calibration, Evidence


@pytest.fixture
def own_readouts() -> Iterator[tuple[str, ...]]:
    """Names of two readouts that a user registers: one bare, one with what it depends on."""
    before = dict(READOUTS)

    @readout
    def half_half(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> torch.Tensor:
        return sum(
            READOUTS[name](evidence, calibration, settings) for name in ("vanilla", "head_information_label_free")
        )

    @readout(depends_on=("layers",), scale="attention_mass", per_head=False)
    def mean_attention(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> torch.Tensor:
        return evidence.layer_attention.mean(1)

    yield half_half.__name__, mean_attention.__name__
    READOUTS.clear()
    READOUTS.update(before)
