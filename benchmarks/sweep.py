"""How long a sweep of stored evidence takes, from reading the store to the plots."""

from __future__ import annotations

import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from tests.synthetic_run import synthetic_run

from benchmarks.measure import Figure, run, timed
from lad_pl.analysis.sweep.command import sweep as sweep_run

_TARGET = 60.0
"""Seconds for 1,000 settings on 5,000 prompts with N = 8 and 15 layers."""
_GRIDS: dict[str, dict[str, object]] = {
    "mixed": {
        "readouts": ["vanilla", "pride", "purified_attention", "agd", "head_information", "agd_head"],
        "temperature": [1.0, 2.0, 5.0],
        "top_layers": [1, 2, 4],
        "recipe": ["reference", "paper"],
        "num_calibration": [1, 5],
        "draws": 16,
    },
    "agd": {"readouts": ["agd"], "temperature": [1.0, 2.0, 3.0, 5.0, 7.0], "top_layers": [1, 2, 3, 4, 5]}
    | {"num_calibration": 5, "draws": 40},
    "agd_head": {"readouts": ["agd_head"], "temperature": [1.0, 2.0, 3.0, 5.0, 7.0], "recipe": ["reference", "paper"]}
    | {"head_exponent": [1.0, 2.0], "num_calibration": 5, "draws": 50},
    "head_information": {"readouts": ["head_information"], "head_exponent": [0.0, 1.0, 2.0, 3.0, 4.0]}
    | {"num_calibration": 5, "draws": 200},
    "label-free fit, each layer": {"readouts": ["head_information_label_free"], "layers": ["each", "all"]}
    | {"num_calibration": 5, "draws": 63},
    "the paper's ablations": {},
}


def sweep(
    prompts: int = 5000,
    num_candidates: int = 8,
    layers: int = 15,
    heads: int = 16,
    calibration_samples: int = 20,
    repeats: int = 3,
    grids: list[str] | None = None,
) -> list[Figure]:
    """Seconds per grid of about 1,000 settings, reading the store, tables and plots included.

    Args:
        prompts: tested prompts, five permutations of each sample.
        num_candidates: N.
        layers: L.
        heads: H.
        calibration_samples: stored ones, each under its N cyclic shifts.
        repeats: how often every grid is measured.
        grids: names of the grids; all if unset.
    """
    shape = {"n": num_candidates, "layers": layers, "heads": heads}
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        path = synthetic_run(folder, samples=prompts // 5, calibration_samples=calibration_samples, **shape)
        for name in grids or _GRIDS:
            count = len(_quietly(path, name))
            seconds = tuple(timed(lambda name=name: _quietly(path, name)) for _ in range(repeats))
            note = f"{count} settings, {prompts} prompts, N = {num_candidates}, L = {layers}, H = {heads}"
            figures.append(Figure(name, seconds, " s", at_most=_TARGET, note=note))
    return figures


def _quietly(path: Path, grid: str) -> list[object]:
    with redirect_stdout(StringIO()):
        return [*sweep_run(path, **_GRIDS[grid])]


if __name__ == "__main__":
    run(sweep)
