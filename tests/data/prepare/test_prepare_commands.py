"""`python -m lad_pl prepare` and `download` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_vlm import write_noise_images

from lad_pl.cli import main
from lad_pl.data import read_annotations
from lad_pl.data.prepare.caption_sets import build_sets
from lad_pl.data.prepare.commands import COMMANDS


@pytest.mark.parametrize("arguments", [["prepare"], ["download"], *(["prepare", command] for command in COMMANDS)])
def test_every_command_explains_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert f"lad_pl {arguments[0]}" in printed
    if len(arguments) == 2:  # every parameter of the function has its line of help
        options = dict(COMMANDS[arguments[1]].__annotations__)
        if options.pop("options", None):
            options |= build_sets.__annotations__
            del options["source"]
        del options["return"]
        assert all(f"--{name}" in printed for name in options)


def test_help_imports_nothing_heavy() -> None:
    """What the commands compute with is imported when they run, so that --help answers at once."""
    code = "import sys, lad_pl.data.prepare.commands, lad_pl.data.prepare.download; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "numpy", "PIL", "pyarrow", "datasets", "open_clip", "safetensors", "lightning", "transformers"}
    assert not heavy.intersection(imported)


def test_a_table_becomes_an_annotation_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [path.name for path in write_noise_images(tmp_path / "photos", 4)]
    rows = [{"id": i, "caption": f"photo {i}", "images": names[:3], "answer_index": i} for i in range(3)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        f"--source={tmp_path / 'mine.jsonl'}",
        f"--output={tmp_path / 'out'}",
        f"--images={tmp_path / 'photos'}",
    ]
    assert main(["prepare", "table", *arguments]) == 0
    (written,) = (tmp_path / "out").glob("*.json")
    assert str(written) in capsys.readouterr().out
    assert [sample.target for sample in read_annotations(written)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare"], "lad_pl prepare --help"),
        (["prepare", "soup"], "'soup' is nothing that prepare reads"),
        (["prepare", "coco", "--colour=red"], "colour"),
        (["prepare", "table", "--source=nowhere.jsonl", "--output=out"], "nowhere.jsonl"),
        (["download", "everything"], "coco-val2014"),
        (["prepare", "table", "--source", "", "--output=out"], "--source is empty"),
        (["prepare", "table", "--source=x.jsonl", "--output="], "--output is empty"),
        (["prepare", "table", "--source=x.jsonl", "--output", " "], "--output is empty"),
        (["prepare", "table", "--source=x.jsonl", "--output", "null"], "--output is null, and has no such value"),
        (["prepare", "coco", "--images", ""], "--images is empty"),
        (["prepare", "coco", "--instances=null", "--captions=nowhere.json"], "nowhere.json: no such file"),
        (["download", "flickr8k", "--output", ""], "--output is empty"),
        (["report", ""], "A path or name is empty"),
        (["prepare", "table", "--config", ""], "config"),
        (["sweep", ""], "A path or name is empty"),
        (["compare", "a", ""], "A path or name is empty"),
        (["report", "a", "--out", ""], "--out is empty"),
        (["report", "null"], "null"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("lad_pl: ")
    assert message in lines[0]
