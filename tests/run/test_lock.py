"""One run at a time in a run folder: who holds the lock, who takes it over, and what two runs do to each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stages import Run

from lad_pl import UserError
from lad_pl.files import machine, start_of
from lad_pl.run import lock as locks
from lad_pl.run.lock import Lock, check_claims, claim, release_all
from lad_pl.vlm import VisionLanguageModel

CLAIM = """
import sys
from pathlib import Path
from lad_pl.errors import UserError
from lad_pl.run.lock import claim
try:
    claim(Path(sys.argv[1]), "test")
except UserError as error:
    print("refused", error)
else:
    print("claimed", flush=True)
    sys.stdin.read()
"""
RECORD = """
import sys
from pathlib import Path
from lad_pl.run.folder import RunFolder
for number in range(8):
    RunFolder(Path(sys.argv[1])).record(sys.argv[2], {"number": number}, {})
"""


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    release_all()


@pytest.fixture
def other() -> Iterator[subprocess.Popen]:
    """Another process of this machine."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def held_by(folder: Path, **changes: object) -> Path:
    holder = {"pid": 1, "host": "a node", "machine": machine(), "started": "", "since": "2026-01-02T03:04:05.6+01:00"}
    path = folder / ".test.lock"
    path.write_text(json.dumps({**holder, **changes}))
    return path


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        claim(folder, "test")
    return str(error.value)


def test_a_running_process_keeps_others_out_until_it_ends(tmp_path: Path, other: subprocess.Popen) -> None:
    path = held_by(tmp_path, pid=other.pid, started=start_of(other.pid))
    line = refusal(tmp_path)
    assert f"test is already running in {tmp_path} (process {other.pid} on a node, since 2026-01-02 03:04:05)" in line
    assert "Wait until it has ended, or choose another folder with --trainer.default_root_dir." in line
    assert "delete" not in line
    claim(tmp_path, "validate")  # another stage has other files
    other.kill()  # and stays a zombie until somebody asks for its exit code
    while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    claim(tmp_path, "test")
    assert json.loads(path.read_text())["pid"] == os.getpid()
    release_all()
    assert not list(tmp_path.iterdir())


def test_a_number_that_another_process_has_got_since(tmp_path: Path, other: subprocess.Popen) -> None:
    held_by(tmp_path, pid=other.pid, started="17")
    claim(tmp_path, "test")


@pytest.mark.parametrize("content", ['{"pid": 1, "machine": "somewhere"}', "", "no lock", "[1]", '{"pid": "x"}'])
def test_a_process_of_another_machine_is_gone_when_it_is_silent(tmp_path: Path, content: str) -> None:
    path = held_by(tmp_path)
    path.write_text(content)
    assert f"If that process is gone, delete {path.resolve()}." in refusal(tmp_path)
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    claim(tmp_path, "test")
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_BEAT", 0.01)
    claim(tmp_path, "test")
    path = tmp_path / ".test.lock"
    os.utime(path, (0, 0))
    while path.stat().st_mtime == 0:
        time.sleep(0.01)


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*paths: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    claim(tmp_path, "test")
    assert "test is already running" in refusal(tmp_path)  # in this process
    assert [path.name for path in tmp_path.iterdir()] == [".test.lock"]


def test_one_of_many_takes_over(tmp_path: Path) -> None:
    held_by(tmp_path, pid=2**22 + 1)  # more than Linux gives
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(5)
    ]
    said = [process.stdout.readline() for process in racing]
    assert sorted(line.split()[0] for line in said) == ["claimed", *["refused"] * 4]
    for process in racing:
        process.communicate("")
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_lost(tmp_path: Path, other: subprocess.Popen) -> None:
    claim(tmp_path, "test")
    (tmp_path / ".test.lock").unlink()
    check_claims()  # taken again
    held_by(tmp_path, pid=other.pid)
    with pytest.raises(UserError, match="already running"):
        check_claims()
    release_all()
    assert (tmp_path / ".test.lock").exists()  # the other's


def test_stages_that_end_at_once_all_record_their_settings(tmp_path: Path) -> None:
    stages = ("test", "validate", "predict")
    writing = [subprocess.Popen([sys.executable, "-c", RECORD, str(tmp_path), stage]) for stage in stages]
    assert [process.wait() for process in writing] == [0, 0, 0]
    recorded = json.loads((tmp_path / "run.json").read_text())
    assert {entry["stage"]: entry["settings"]["number"] for entry in recorded.values()} == dict.fromkeys(stages, 7)


def test_a_lock_that_waits(tmp_path: Path) -> None:
    Lock(tmp_path / "a", "it is done").acquire()
    with pytest.raises(UserError, match="it is done in"):
        Lock(tmp_path / "a", "it is done").acquire(patience=0.1)


# ------------------------------------------------------------------------------------------------------- whole stages


def test_a_second_run_is_refused_before_its_model_is_loaded(run: Run, other: subprocess.Popen, monkeypatch) -> None:
    held_by(run.folder, pid=other.pid, started=start_of(other.pid))
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(run.module, "vlm", None)
        patch.setattr(VisionLanguageModel, "load", lambda spec: pytest.fail("the model is loaded"))
        assert f"test is already running in {run.folder}" in run.refused("test", overwrite=True)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
    assert run("validate") == 8


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, UserError])
def test_the_lock_ends_with_the_run(run: Run, error: type[BaseException] | None, monkeypatch) -> None:
    def fails(self, *arguments):
        assert (run.folder / ".test.lock").exists()
        assert "already running" in refusal(run.folder)
        raise error

    if error is None:
        assert run("test", num_test=1) == 1
    else:
        monkeypatch.setattr(VisionLanguageModel, "evidence", fails)
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            run("test", num_test=1)
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it after the first
    assert not list(run.folder.glob(".*"))


def test_nothing_is_replaced_once_another_run_has_the_folder(run: Run, other: subprocess.Popen, monkeypatch) -> None:
    """Somebody has deleted the lock and begun another run."""
    sound = VisionLanguageModel.evidence

    def evidence(self, *arguments):
        held_by(run.folder, pid=other.pid)
        return sound(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(VisionLanguageModel, "evidence", evidence)
        assert "test is already running" in run.refused("test", num_test=2, overwrite=True)
    assert not (run.folder / "evidence.parquet").exists()
    assert not (run.folder / "predictions.jsonl").exists()
    (run.folder / ".test.lock").unlink()
    assert run("test", num_test=2) == 0  # it was kept
