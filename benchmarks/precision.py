"""Half precision and torch.compile on the demo set: do they keep the decisions, and what do they cost or save?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Figure, run
from lad_pl.cli import main
from lad_pl.errors import UserError

VARIANTS = {
    "float32": [],
    "bfloat16": ["--model.vlm.dtype=bfloat16"],
    "float16": ["--model.vlm.dtype=float16"],
    "float32, compiled": ["--model.vlm.compile=true"],
}
READOUTS = ("vanilla", "agd", "head_information")


@dataclass(frozen=True)
class Options:
    num_test: int = 300
    """Samples, each under 5 permutations."""
    variants: Sequence[str] = tuple(VARIANTS)
    """float32, bfloat16, float16, and 'float32, compiled'; decisions are compared with the first one's."""


def precision(options: Options) -> Iterator[Figure]:
    """Accuracy and seconds per prompt on the demo, N = 4 adversarial, by number format."""
    first = None
    with TemporaryDirectory() as folder:
        for number, name in enumerate(options.variants):
            predictions, accuracy, seconds = demo(Path(folder) / str(number), options.num_test, VARIANTS[name])
            first = first or predictions
            for readout in READOUTS:
                pairs = zip(predictions, first, strict=True)
                changed = sum(ours["choices"][readout] != theirs["choices"][readout] for ours, theirs in pairs)
                note = f"{changed} of {len(predictions)} decisions are not those of {options.variants[0]}"
                yield Figure(f"{name}: accuracy of {readout}", (100 * accuracy[readout],), " %", note=note)
            yield Figure(f"{name}: time of a prompt", (1000 * seconds,), " ms")


def demo(folder: Path, num_test: int, options: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, float], float]:
    """Predictions, accuracy by readout, and seconds per prompt."""
    common = [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false", *options]
    for command in (["fit"], ["test", f"--data.num_test={num_test}"]):
        if main([*command, *common]):
            raise UserError(f"lad_pl {command[0]} failed.")
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    metrics, costs = (json.loads((folder / name).read_text()) for name in ("metrics.json", "costs.json"))
    accuracy = {readout: metrics["readouts"][readout]["accuracy"] for readout in READOUTS}
    return predictions, accuracy, costs["methods"]["agd"]["seconds"]


if __name__ == "__main__":
    run(precision)
