"""The entry of the command line: which command runs, what it imports, and mistakes in one line."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import fails
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lad_pl import UserError
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
        ("--trainer.limit_train_batches=0.2", "for fewer samples, set --data.num_calibration (fit) or --data.num_test"),
        ("--trainer.gradient_clip_val=1.5", "Change or leave out --trainer.gradient_clip_val."),
        ("--trainer.logger=MLFlowLogger", "Install it, or leave the option out."),
        ("--trainer.strategy=xla", "Install it, or leave the option out."),
        ("--trainer.callbacks=LearningRateMonitor", "Change or leave out --trainer.callbacks."),
        ("--trainer.profiler=nonsense", "Change or leave out --trainer.profiler."),
    ],
)
def test_mistyped_options(options, capsys, mistake: str, message: str) -> None:
    options = [option for option in options if "accelerator" not in option or "accelerator" not in mistake]
    assert message in fails(capsys, "fit", *options, mistake)


CALLBACKS = """
from lightning.pytorch.callbacks import Callback

class Broken(Callback):
    def on_fit_start(self, trainer, module):
        raise ValueError("a mistake of my own")

class Unknown(Callback):
    def setup(self, trainer, module, stage):
        import no_such_library

class Misused(Callback):
    def setup(self, trainer, module, stage):
        module.log("name", 1)

class Unmade(Callback):
    def __init__(self):
        self.name.missing
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Broken", ValueError),
        ("Unknown", ModuleNotFoundError),
        ("Misused", MisconfigurationException),
        ("Unmade", ValueError),  # jsonargparse's, with the text of the AttributeError
    ],
)
def test_a_mistake_in_ones_own_class_keeps_its_traceback(options, tmp_path, monkeypatch, name: str, kind) -> None:
    (tmp_path / "my_callbacks.py").write_text(CALLBACKS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(kind) as raised:
        main(["fit", *options, f"--trainer.callbacks=my_callbacks.{name}"])
    sys.modules.pop("my_callbacks", None)
    assert "my_callbacks" in str(raised.getrepr())


def test_a_timer_is_a_callback_like_others(options: list[str]) -> None:
    """Its default is an enumeration, which has to be written as YAML."""
    assert main(["fit", *options, "--trainer.callbacks=Timer", "--trainer.callbacks.duration=00:01:00:00"]) == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left", "/data/run/x"), "/data/run/x: No space left; make room there"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x"), "/data/x: Disk quota exceeded; make room there"),
        (PermissionError(errno.EACCES, "Permission denied", b"there/x"), "there/x: Permission denied; choose another"),
        (OSError(errno.EROFS, "Read-only file system", "/cd/x"), "/cd/x: Read-only file system; choose a place"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/f/x"), "/f/x: Not a directory; a part of this path"),
        (OSError(errno.EMFILE, "Too many open files", "/x"), "/x: Too many open files; raise the limit"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "/a and /b: Invalid cross-device link."),
        (ValueError("embedded null byte"), "A path has a NUL character"),
        (UserError("caf\udce9 \x1b[31m\u202e is\nno name"), r"lad_pl: caf\udce9 \x1b[31m\u202e is no name"),
        (OSError(errno.ENOENT, "No such file", "a\x1b]8;;http://x\x07b"), r"a\x1b]8;;http://x\x07b: No such file"),
    ],
)
def test_what_the_system_refuses(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["lad_pl.cli.main"], "run_command", refuse)
    assert message in fails(capsys, "report", "run")


@pytest.mark.parametrize("command", ["fit", "report", "predict --images", "prepare coco --captions", "--config"])
def test_bytes_that_are_no_text(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert r"'/data/caf\udce9'; rename the file" in fails(capsys, *command.split(), "/data/caf\udce9")


def test_other_exceptions_are_no_mistakes_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("not expected")

    monkeypatch.setattr(sys.modules["lad_pl.cli.main"], "run_command", fail)
    with pytest.raises(ValueError, match="not expected"):
        main(["report", "run"])


def test_the_newcomers_first_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name a model with --config or --model.vlm.path" in fails(capsys, "fit", "--data.annotations=my.json")
