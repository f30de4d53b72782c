"""The entry of the command line: which command runs, what it imports, and mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import fails

from lad_pl.cli import main
from lad_pl.cli.commands import LIGHTNING_COMMANDS, OTHER_COMMANDS

HEAVY = ("torch", "lightning", "transformers", "pyarrow", "numpy", "matplotlib", "PIL")
IN_A_PROCESS = """
import json, sys
from lad_pl.cli import main
try:
    code = main(sys.argv[2:])
except SystemExit as end:
    code = end.code
loaded = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
print(json.dumps([code, loaded]))
"""


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_overview(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  fit        Calibrate on a few samples." in lines
    assert "  predict    Rank the images of samples whose answers are unknown." in lines
    for name, summary in (LIGHTNING_COMMANDS | OTHER_COMMANDS).items():
        assert f"  {name:9}  {summary}" in lines
    assert max(map(len, lines)) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lad_pl {version('lad_pl')}\n"


def test_a_mistyped_command(capsys: pytest.CaptureFixture[str]) -> None:
    everything = "Commands: fit, validate, test, predict, prepare, download, sweep, report, compare."
    assert fails(capsys, "reprot") == f"lad_pl: 'reprot' is no command; did you mean report? {everything}"
    assert fails(capsys, "xyzzy") == f"lad_pl: 'xyzzy' is no command. {everything}"
    assert main([]) == 2
    assert capsys.readouterr().err == f"lad_pl: Name a command. {everything}\n"


@pytest.mark.parametrize(
    "typed", ["--help", "--version", "reprot", *(f"{name} --help" for name in OTHER_COMMANDS), "prepare coco --help"]
)
def test_what_needs_no_model_imports_no_heavy_library(typed: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_PROCESS, json.dumps(HEAVY), *typed.split()]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    code, loaded = json.loads(result.stdout.splitlines()[-1])
    assert code == (2 if typed == "reprot" else 0)
    assert not loaded


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("--model.no_such=1", "unrecognized arguments: --model.no_such=1"),
        ("--model.readout.top_layers=two", "Expected a <class 'int'>. Got value: two"),
        ("--data.no_such=1", "Option 'no_such' is not accepted"),
        ("--data=NoClass", "NoClass"),
        ("--config=nowhere.yaml", "File does not exist"),
        ("--trainer.accelerator=abacus", "The trainer's options do not work here"),
        ("--trainer.strategy=ddq", "The trainer's options do not work here"),
        ("--trainer.limit_train_batches=0", "Nothing was calibrated on"),
    ],
)
def test_mistyped_options(options, capsys, mistake: str, message: str) -> None:
    assert message in fails(capsys, "fit", *options, mistake)


def test_the_newcomers_first_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name a model with --config or --model.vlm.path" in fails(capsys, "fit", "--data.annotations=my.json")
