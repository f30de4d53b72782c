"""The help of a command comes at once, and replaying stored evidence needs no library of the models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lad_pl

LIBRARIES = ("lightning", "transformers", "torchmetrics", "torchvision", "matplotlib")
HEAVY = (*LIBRARIES, "torch", "numpy", "pyarrow", "rich", "jinja2", "PIL")
# The modules themselves: the package's own __init__ is not run.
SCRIPT = """
import sys, types
package = sys.modules["lad_pl"] = types.ModuleType("lad_pl")
package.__path__ = [{root!r}]
import {modules}
print(*(name for name in {heavy!r} if name in sys.modules))
"""


def imported(modules: str, heavy: tuple[str, ...]) -> str:
    script = SCRIPT.format(root=str(Path(lad_pl.__file__).parent), modules=modules, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["sweep.command", "report.command", "compare"])
def test_a_command_is_light(module: str) -> None:
    assert imported(f"lad_pl.analysis.{module}", HEAVY) == ""


def test_stored_evidence_needs_no_models_libraries() -> None:
    modules = "lad_pl.analysis.sweep.evaluate_grid, lad_pl.analysis.comparison, lad_pl.readouts, lad_pl.calibrate"
    assert imported(modules, LIBRARIES) == ""
