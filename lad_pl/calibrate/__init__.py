"""From the evidence of the calibration passes to a :class:`~lad_pl.types.Calibration`, and its checkpoint file."""

from lad_pl.calibrate.checkpoint import check_calibration, load_calibration, pack, unpack
from lad_pl.calibrate.statistics import calibrate, information, log_mean_probability

__all__ = [
    "calibrate",
    "check_calibration",
    "information",
    "load_calibration",
    "log_mean_probability",
    "pack",
    "unpack",
]
