"""The commands that need no Lightning: options from signatures, help from docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import docstring_parser
import pytest

from lad_pl.analysis.compare import compare
from lad_pl.analysis.report.command import report
from lad_pl.analysis.sweep.command import sweep
from lad_pl.cli import main
from lad_pl.data.prepare.download import download


@pytest.mark.parametrize("function", [report, sweep, compare, download])
def test_every_parameter_is_described(function: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([function.__name__, "--help"])
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: lad_pl {function.__name__} ")
    assert inspect.getdoc(function).splitlines()[0] in text
    documented = {
        parameter.arg_name: parameter.description for parameter in docstring_parser.parse_from_object(function).params
    }
    for name, parameter in inspect.signature(function).parameters.items():
        assert parameter.default is parameter.empty or f" --{name} " in text
        assert name in ("run", "runs") or " ".join(documented[name].split()) in text


def test_a_missing_run_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("report", "sweep", "compare"):
        assert main([command, "nowhere"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lad_pl: ")
        assert "nowhere" in line


def test_an_option_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "run", "--tempreature", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tempreature" in line
    assert line.endswith("`python -m lad_pl sweep --help` lists the options.")
