"""A wheel, built and unpacked somewhere else, runs the demo from any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT


@pytest.mark.slow
def test_the_wheel_carries_the_demo(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), ROOT]
    subprocess.run(build, check=True, timeout=120)
    wheel = next(tmp_path.glob("lad_pl-*.whl"))
    assert wheel.stat().st_size < 5_000_000
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    for arguments in (["fit"], ["test", "--data.num_test=4"]):
        command = [sys.executable, "-P", "-m", "lad_pl", *arguments]
        result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
    assert json.loads((elsewhere / "checkpoints/demo/metrics.json").read_text())["num_samples"] == 4
    where = "import lad_pl, lad_pl.files as a; print(lad_pl.__file__, a.asset('checkpoints/demo-vlm'))"
    shown = subprocess.run([sys.executable, "-P", "-c", where], cwd=elsewhere, env=environment, capture_output=True)
    assert shown.stdout.decode().count(str(tmp_path / "site")) == 2  # the wheel's own files, not this checkout's
