"""How long a sweep of stored evidence takes, from reading the store to the plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure import Figure, run, timed
from benchmarks.ours import SETTINGS
from lad_pl.analysis.sweep.command import sweep as sweep_run
from lad_pl.calibrate import calibrate, pack
from lad_pl.data.permutations import Permutation, cyclic_shifts, random_permutations
from lad_pl.evidence.store import EvidenceStore
from lad_pl.evidence.table import EvidenceRecords, as_stored
from lad_pl.types import Evidence

TARGET = 60.0
"""Seconds for 1,000 settings on 5,000 prompts with N = 8 and 15 layers."""
PERMUTATIONS = 5
GRIDS: dict[str, dict[str, Any]] = {
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


@dataclass(frozen=True)
class Options:
    prompts: int = 5000
    """Tested prompts, five permutations of each sample."""
    num_candidates: int = 8
    """N."""
    layers: int = 15
    """L."""
    heads: int = 16
    """H."""
    calibration_samples: int = 20
    """Stored ones, each under its N cyclic shifts."""
    repeats: int = 3
    """How often every grid is measured."""
    grids: Sequence[str] = tuple(GRIDS)
    """Names of the grids."""


def sweep(options: Options) -> Iterator[Figure]:
    """Seconds per grid of about 1,000 settings, reading the store, tables and plots included."""
    with TemporaryDirectory() as folder:
        path = random_run(Path(folder), options)
        for name in options.grids:
            count = len(quietly(path, name))
            seconds = tuple(timed(lambda name=name: quietly(path, name)) for _ in range(options.repeats))
            shape = f"N = {options.num_candidates}, L = {options.layers}, H = {options.heads}"
            note = f"{count} settings, {options.prompts} prompts, {shape}"
            yield Figure(name, seconds, " s", at_most=TARGET, note=note)


def quietly(path: Path, grid: str) -> list[object]:
    with redirect_stdout(StringIO()):
        return [*sweep_run(path, **GRIDS[grid])]


def random_run(path: Path, options: Options) -> Path:
    """A run folder with random evidence: what a sweep costs does not depend on the numbers."""
    n = options.num_candidates
    calibration_records = random_records(options.calibration_samples, cyclic_shifts(n), options, "calibration", seed=0)
    records = random_records(options.prompts // PERMUTATIONS, random_permutations(n, PERMUTATIONS), options, "test", 1)
    for name, stored in {"calibration_evidence": calibration_records, "evidence": records}.items():
        store = EvidenceStore(path / f"{name}.parquet", {"model": "random"})
        store.append(stored)
        store.close()
        store.finish(len(stored) // stored.num_permutations, stored.num_permutations)
    calibration = calibrate(
        calibration_records.evidence,
        calibration_records.targets,
        calibration_records.permutations,
        calibration_records.sample_index,
    )
    samples = sorted(set(calibration_records.ids))
    torch.save(pack(calibration, {"calibration_samples": samples}), path / "calibration.ckpt")
    settings = {"readout": asdict(SETTINGS), "readouts": ["vanilla", "agd"], "calibration_samples": samples}
    report = {"layers": list(range(options.layers)), "calibration": "calibration.ckpt", "settings": settings}
    (path / "metrics.json").write_text(json.dumps(report))
    return path


def random_records(
    samples: int, permutations: Sequence[Permutation], options: Options, name: str, seed: int
) -> EvidenceRecords:
    """Each sample under the given permutations; image 0 matches the caption."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.tensor(permutations).repeat(samples, 1)
    sample_index = torch.arange(samples).repeat_interleave(len(permutations))
    prompts, n = orders.shape
    log_probs = torch.randn(prompts, n, generator=generator).log_softmax(-1)
    attention = torch.rand(prompts, options.layers, options.heads, n, generator=generator) / n
    return EvidenceRecords(
        evidence=as_stored(Evidence.from_heads(log_probs, attention)),
        targets=(orders == 0).int().argmax(1),
        permutations=orders,
        sample_index=sample_index,
        permutation_index=torch.arange(prompts) % len(permutations),
        ids=tuple(f"{name}-{number}" for number in sample_index.tolist()),
        seconds=torch.zeros(prompts, dtype=torch.float64),
        forwards=torch.ones(prompts, dtype=torch.long),
    )


if __name__ == "__main__":
    run(sweep)
