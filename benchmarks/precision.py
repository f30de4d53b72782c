"""Half precision and torch.compile on the demo set: do they keep the decisions, and what do they cost or save?

python -m benchmarks.precision
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from lad_pl.cli import main

WAYS: dict[str, list[str]] = {
    "float32": [],
    "bfloat16": ["--model.vlm.dtype=bfloat16"],
    "float16": ["--model.vlm.dtype=float16"],
    "float32, compiled": ["--model.vlm.compile=true"],
}


def run(folder: Path, num_test: int, *options: str) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Predictions, metrics and costs of the demo."""
    common = [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false", *options]
    for command in (["fit"], ["test", f"--data.num_test={num_test}"]):
        if main([*command, *common]):
            sys.exit(1)
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    metrics, costs = (json.loads((folder / name).read_text()) for name in ("metrics.json", "costs.json"))
    return predictions, metrics["readouts"], costs["methods"]


def measure(num_test: int, ways: dict[str, list[str]] = WAYS) -> list[dict[str, Any]]:
    """One row per way of computing: agd's accuracy, decisions that differ from the first way's, seconds per prompt."""
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, options) in enumerate(ways.items()):
            predictions, metrics, costs = run(Path(folder) / str(number), num_test, *options)
            first = predictions if first is None else first
            row: dict[str, Any] = {"way": name, "prompts": len(predictions), "seconds": costs["agd"]["seconds"]}
            for readout in ("vanilla", "agd", "head_information"):
                pairs = zip(predictions, first, strict=True)
                row[readout] = metrics[readout]["accuracy"]
                row[f"{readout} changed"] = sum(a["choices"][readout] != b["choices"][readout] for a, b in pairs)
            rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> Table:
    title = f"Demo, N = 4 adversarial, {rows[0]['prompts']} prompts: accuracy in %, (decisions changed)"
    table = Table(title=title, box=MARKDOWN)
    for name in ("", "vanilla", "agd", "head_information", "s per prompt"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        cells = [f"{100 * row[name]:.2f} ({row[f'{name} changed']})" for name in ("vanilla", "agd", "head_information")]
        table.add_row(row["way"], *cells, f"{row['seconds']:.4f}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--num_test", type=int, default=300, help="samples, each under 5 permutations")
    Console().print(show(measure(parser.parse_args().num_test)))
