"""A wheel, built and unpacked somewhere else, runs the demo from any folder, and carries the hard one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

SCRIPT = """
import runpy, sys
import lad_pl
from lad_pl.files import asset
print(lad_pl.__file__, *map(asset, ("checkpoints/demo-vlm", "checkpoints/demo-hard-vlm", "data/demo-hard")))
for typed in (["test"], ["fit"], ["test", "--data.num_test=4"]):
    sys.argv = ["lad_pl", *typed]
    try:
        runpy.run_module("lad_pl", run_name="__main__")
    except SystemExit as end:
        print("exit code", end.code)
"""
"""Three times ``python -m lad_pl``, the first one too early, in one process: importing takes most of the time."""


@pytest.mark.slow
def test_the_wheel_carries_the_demo(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), ROOT]
    subprocess.run(build, check=True, timeout=120)
    wheel = next(tmp_path.glob("lad_pl-*.whl"))
    assert wheel.stat().st_size < 8_000_000
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-P", "-c", SCRIPT]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].count(str(tmp_path / "site")) == 4  # the wheel's own files, not this checkout's
    assert [line for line in lines if line.startswith("exit code")] == ["exit code 2", "exit code 0", "exit code 0"]
    mistake = [line for line in result.stderr.splitlines() if line.startswith("lad_pl: ")]
    assert len(mistake) == 1
    assert mistake[0].startswith("lad_pl: There is no calibration")
    assert "Traceback" not in result.stderr
    assert json.loads((elsewhere / "checkpoints/demo/metrics.json").read_text())["num_samples"] == 4
