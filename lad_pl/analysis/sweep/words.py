"""How factors, values and the run are called in tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lad_pl.analysis.sweep.layers import ALL
from lad_pl.analysis.sweep.results import Summary
from lad_pl.analysis.sweep.settings import FACTORS, Setting
from lad_pl.analysis.sweep.settings_grid import Plan

LABELS = {
    "recipe": "recipe",
    "top_layers": "layers read per prompt, K",
    "temperature": "temperature of the posterior, tau",
    "layers": "captured layers",
    "head_exponent": "exponent e of the heads' weights g^e",
    "num_calibration": "calibration samples",
}
_SHORT = {
    "recipe": "recipe {}",
    "top_layers": "K = {}",
    "temperature": "tau = {}",
    "layers": "layers {}",
    "head_exponent": "weights g^{}",
    "num_calibration": "{} calibration samples",
}


@dataclass(frozen=True)
class About:
    """The run that was swept."""

    name: str
    stage: str
    num_candidates: int
    num_samples: int
    num_permutations: int
    layers: Sequence[int]

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.stage}): N = {self.num_candidates} images, {self.num_samples} samples x "
            f"{self.num_permutations} permutations"
        )


def held(plan: Plan, about: About, but: str, shown: Sequence[Summary]) -> str:
    """The values at which all factors that matter to what is shown are held, but for one."""
    settings = [summary.setting for summary in shown]
    used = [name for name in FACTORS if name != but and any(getattr(each, name) is not None for each in settings)]
    words = {name: _SHORT[name].format(value_name(plan.reference[name])) for name in used}
    if "layers" in words and plan.reference["layers"].name == ALL:
        words["layers"] = f"layers {shortened(about.layers)}"
    if "top_layers" in words and but == "layers":
        words["top_layers"] += " or all that there are"
    return ", ".join(words.values())


def chosen(setting: Setting) -> str:
    """The choices of a setting that matter to its readout."""
    values = {name: getattr(setting, name) for name in FACTORS}
    return ", ".join(_SHORT[name].format(value_name(value)) for name, value in values.items() if value is not None)


def value_name(value: Any) -> str:
    """A factor's value, as short as it goes."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def shortened(layers: Sequence[int]) -> str:
    """Layer numbers, neighbours as a range.

    >>> shortened([3, 7, 8, 9])
    '3, 7-9'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
