"""From the evidence of the calibration passes to a :class:`~lad_pl.types.Calibration`, and its checkpoint file."""

from lad_pl.calibrate.checkpoint import check_calibration, load_calibration, pack, unpack
from lad_pl.calibrate.diagnosis import diagnose, lines, warn_of_attention, warning
from lad_pl.calibrate.head_scores import core_score, information, qr_score
from lad_pl.calibrate.statistics import calibrate, log_mean_probability, statistics

__all__ = [
    "calibrate",
    "check_calibration",
    "core_score",
    "diagnose",
    "information",
    "lines",
    "load_calibration",
    "log_mean_probability",
    "pack",
    "qr_score",
    "statistics",
    "unpack",
    "warn_of_attention",
    "warning",
]
