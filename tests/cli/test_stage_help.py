"""``--help`` of fit, validate, test and predict."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from itertools import groupby

import pytest
import yaml
from paths import CONFIGS

from lad_pl import AttentionGuidedDebiasing, DemoData, MultiImageData, PromptSpec, ReadoutSettings, VLMSpec
from lad_pl.cli import main
from lad_pl.cli.commands import LIGHTNING_COMMANDS
from lad_pl.cli.stage_help import _TRAINER, CKPT_PATH
from lad_pl.methods import METHODS, MethodSettings
from lad_pl.readouts import READOUTS

NESTED = {"vlm": VLMSpec, "prompt": PromptSpec, "readout": ReadoutSettings, "method": MethodSettings}


@cache
def printed(*arguments: str) -> str:
    """What a command prints before it exits with code 0."""
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 0
    return out.getvalue()


def options_in(text: str) -> dict[str, str]:
    """The options of a help by their names, with their descriptions."""
    lines = re.split(r"\n  (?=-)", text)[1:]
    parts = (re.match(r"(?:-\w, |-\w \S+, )?(--[\w.-]+)(?: \S.*?)??(?:\n|  )(.*)", line, re.S) for line in lines)
    return {part[1]: " ".join(part[2].split("\n\n")[0].split()) for part in parts if part}


def parameters(cls: type, prefix: str) -> Iterator[str]:
    for name in inspect.signature(cls).parameters:
        nested = NESTED.get(name) if cls is AttentionGuidedDebiasing else None
        yield from (f"{prefix}{name}.{field.name}" for field in fields(nested)) if nested else (f"{prefix}{name}",)


@pytest.mark.parametrize("command", LIGHTNING_COMMANDS)
def test_every_option_of_model_and_data_is_described(command: str) -> None:
    options = options_in(printed(command, "--help"))
    for name in (*parameters(AttentionGuidedDebiasing, "--model."), *parameters(MultiImageData, "--data.")):
        assert len(options[name].partition(" (default:")[0]) > 10, name
    assert all(options.values())
    assert options["--model.layers"].startswith("Decoder layers whose attention is captured")
    assert "K: how many of the captured layers" in options["--model.readout.top_layers"]


@pytest.mark.parametrize("command", LIGHTNING_COMMANDS)
def test_model_then_data_then_run_then_trainer(command: str) -> None:
    names = list(options_in(printed(command, "--help")))
    kinds = [kind for kind, _ in groupby(name.split(".")[0] for name in names)]
    run = ["--config", "--print_config", *(["--ckpt_path"] if command != "fit" else [])]
    photos = ["--images", "--caption", "--captions", "--contact_sheet"] if command == "predict" else []
    assert kinds == ["--model", "--data", *photos, *run, "--seed_everything", "--help-all", "--trainer"]
    assert names[-len(_TRAINER) :] == [f"--trainer.{name}" for name in _TRAINER]


def test_the_registered_readouts_and_methods_are_listed() -> None:
    options = options_in(printed("test", "--help"))
    assert f"{', '.join(READOUTS)}." in options["--model.readouts"]
    assert f"{', '.join(METHODS)}." in options["--model.methods"]


@pytest.mark.parametrize("chosen", [["--data", "DemoData"], [f"--config={CONFIGS / 'demo.yaml'}"]])
def test_the_options_of_another_data_class(chosen: list[str]) -> None:
    options = options_in(printed("test", *chosen, "--help"))
    own = {name for name in parameters(DemoData, "--data.") if name != "--data.options"}
    assert own | {"--data.num_test"} <= set(options)
    assert "--data.annotations" not in options


def test_the_calibration_file_is_described_as_it_is_used() -> None:
    for arguments in (["validate"], ["test"], ["predict"]):
        short, long = (printed(*arguments, option) for option in ("--help", "--help-all"))
        assert options_in(short)["--ckpt_path"] == CKPT_PATH
        assert options_in(long)["--ckpt_path"].startswith(CKPT_PATH)
        assert not re.search("""['"](best|last|hpc|registry)['"]""", short)
        assert '``"hpc"``' not in long and "best model checkpoint" not in long


def test_help_all_lists_what_help_leaves_out() -> None:
    short, long = (options_in(printed("test", option)) for option in ("--help", "--help-all"))
    assert {name for name in short if not name.startswith("--data.")} < set(long)
    assert "--trainer.limit_test_batches" in set(long) - set(short)


def test_the_trainers_defaults_are_those_in_use() -> None:
    config = yaml.safe_load(printed("test", "--model.vlm.path=a", "--data.annotations=b", "--print_config"))
    used = {name: config["trainer"][name] for name in _TRAINER}
    shown = {name: default for name, (default, _, _) in _TRAINER.items()}
    assert used | {"enable_progress_bar": True} == shown  # unset, which Lightning takes for true
    assert used["enable_progress_bar"] in (None, True)


@pytest.mark.parametrize("columns", ["80", "120"])
def test_no_line_is_wider_than_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    printed.cache_clear()
    assert max(map(len, printed("predict", "--help").splitlines())) <= int(columns)
    printed.cache_clear()
