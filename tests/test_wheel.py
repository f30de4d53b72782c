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
    typed = [sys.executable, "-P", "-m", "lad_pl", "fit"]
    fitted = subprocess.run(typed, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert fitted.returncode == 0, fitted.stderr
    script = (
        "import lad_pl; from lad_pl.cli import main; from lad_pl.files import asset; "
        "print(lad_pl.__file__, asset('checkpoints/demo-vlm')); raise SystemExit(main(['test', '--data.num_test=4']))"
    )
    typed = [sys.executable, "-P", "-c", script]
    tested = subprocess.run(typed, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert tested.returncode == 0, tested.stderr
    assert json.loads((elsewhere / "checkpoints/demo/metrics.json").read_text())["num_samples"] == 4
    files, *_ = tested.stdout.splitlines()
    assert files.count(str(tmp_path / "site")) == 2  # the wheel's own files, not this checkout's
