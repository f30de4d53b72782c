"""Any grid of readouts and their free choices, from stored evidence, without a model."""

from lad_pl.analysis.sweep.command import sweep

__all__ = ["sweep"]
