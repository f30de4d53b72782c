"""CPU seconds until each command answers, beside ``import torch``: ``python -m benchmarks.startup``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from jsonargparse import auto_cli
from rich import box
from rich.console import Console
from rich.table import Table

COMMANDS = (
    *("--help", "--version", "reprot", "report --help", "sweep --help", "compare --help"),
    *("prepare --help", "prepare coco --help", "download --help", "test --help", "compare nowhere", "sweep nowhere"),
)
"""Two of them name a run folder that does not exist, so they end once everything they need is imported."""
IMPORTS = ("torch", "lad_pl", "lad_pl.readouts, lad_pl.calibrate")
CASES = {f"import {name}": ["-c", f"import {name}"] for name in IMPORTS}
CASES |= {f"lad_pl {command}": ["-m", "lad_pl", *command.split()] for command in COMMANDS}
MISTAKES = ("lad_pl reprot", "lad_pl compare nowhere", "lad_pl sweep nowhere")
"""End with exit code 2, the others with 0."""


def startup(against: Path | None = None, repeats: int = 5) -> None:
    """User and system time of fresh processes: medians, and their ratios to ``import torch``.

    Args:
        against: another checkout, measured in turns with this one; what it does not have is shown as "-".
        repeats: how many processes to start for each case.
    """
    checkouts = [Path(__file__).parents[1], *([against.resolve()] if against else [])]
    seconds: dict[tuple[str, Path], list[float | None]] = {(case, path): [] for case in CASES for path in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for (case, path), values in seconds.items():
                values.append(cpu_seconds(case, path, folder))
    table = Table("", "CPU s", "/ torch", *(["CPU s, other", "/ torch"] if against else []), box=box.MARKDOWN)
    for case in CASES:
        row = []
        for path in checkouts:
            value, torch = (median(seconds[name, path]) for name in (case, "import torch"))
            row += ["-", "-"] if value is None or torch is None else [f"{value:.2f}", f"{value / torch:.2f}"]
        table.add_row(case, *row)
    Console(width=100).print(table)  # wrapped cells are no Markdown


def cpu_seconds(case: str, checkout: Path, folder: str) -> float | None:
    """CPU seconds of one process; None if it does not end as it should."""
    process = subprocess.Popen(
        [sys.executable, *CASES[case]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime if process.returncode == 2 * (case in MISTAKES) else None


def median(values: list[float | None]) -> float | None:
    """None if no process ended as it should."""
    kept = [value for value in values if value is not None]
    return statistics.median(kept) if kept else None


if __name__ == "__main__":
    auto_cli(startup)
