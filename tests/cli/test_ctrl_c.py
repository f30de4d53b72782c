"""Ctrl-C, and a reader of the output that goes away: at most one line, and the conventional exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lad_pl import __main__ as program
from lad_pl.cli import lightning_cli, main
from lad_pl.module import AttentionGuidedDebiasing
from lad_pl.vlm import VisionLanguageModel

AGAIN = "lad_pl: Stopped; run the same command again to go on."


def pressed(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def swallowed(*arguments: object, **options: object) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error  # as libraries of C++ do


def stopped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(arguments) == 1
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    lines = [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line and line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("interrupt", [pressed, swallowed])
@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("fit", "lad_pl.cli.lightning_cli.CLI.parse_arguments"),
        ("fit", "lad_pl.cli.lightning_cli.CLI.instantiate_classes"),
        ("report", "jsonargparse.ArgumentParser.parse_args"),
        ("report RUN", "lad_pl.analysis.report.reported_run.read_run"),
        ("sweep RUN", "lad_pl.analysis.stored_run.StoredRun.__init__"),
        ("compare RUN", "lad_pl.analysis.stored_run.StoredRun.__init__"),
        ("prepare coco --captions=RUN --instances=RUN", "lad_pl.data.prepare.caption_sets.read_coco"),
        ("download flickr8k --accept_licence=true --output=RUN", "lad_pl.data.prepare.download.fetch"),
    ],
)
def test_commands_that_compute_nothing_yet(
    command: str, place: str, interrupt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(place, interrupt)
    assert stopped(capsys, *command.replace("RUN", str(tmp_path)).split()) == AGAIN


@pytest.mark.parametrize("place", ["load", "evidence", "_write"])
def test_a_run_says_where_its_results_are(options, tmp_path, place: str, monkeypatch, capsys) -> None:
    if place == "_write":
        monkeypatch.setattr(AttentionGuidedDebiasing, "on_save_checkpoint", pressed)
    else:
        monkeypatch.setattr(VisionLanguageModel, place, pressed)
    line = stopped(capsys, "fit", *options)
    assert (
        line
        == f"lad_pl: Stopped; what was computed is kept in {tmp_path / 'run'}. Run the same command again to go on."
    )
    assert not (tmp_path / "run" / "calibration.ckpt").exists()


def test_before_the_run_has_begun(options, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(lightning_cli.pl.Trainer, "_run", pressed)
    assert stopped(capsys, "fit", *options).startswith("lad_pl: Stopped; ")


def test_a_second_press_at_once_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    clock = iter((10.0, 10.2, 12.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    ended: list[int] = []
    monkeypatch.setattr(program, "_end", lambda: ended.append(1))
    stop = program._handler()
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)
    stop(signal.SIGINT, None)
    assert not ended
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)  # whoever presses again after a while does not want to wait
    assert ended


STUB = """
    import os, signal
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
    except BaseException:
        pass  # libraries do this
    print("went on")
"""


def started(arguments: list[str], **options) -> subprocess.CompletedProcess[str]:
    """`python -m lad_pl` with SIGINT as a terminal sets it."""
    code = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.argv[1:] = {json.dumps(arguments)}; runpy.run_module('lad_pl', run_name='__main__', alter_sys=True)"
    )
    return subprocess.run([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, **options)


def test_during_an_import_that_hides_it(tmp_path: Path) -> None:
    (tmp_path / "jsonargparse.py").write_text(textwrap.dedent(STUB))
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    result = started(["report", "x"], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"{AGAIN}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["nonsense"]])
def test_nobody_reads(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = started(arguments, stdout=writer)
    os.close(writer)
    if arguments == ["--help"]:
        assert (result.returncode, result.stderr) == (141, "")
    else:
        assert result.returncode == 2
