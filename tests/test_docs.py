"""The README and docs/: their commands, links, names and examples hold.

Every command is parsed by the real parser. Those that run on the demo in a few seconds also run; the others need a
network, a GPU, a cluster or data that is not here.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from paths import ROOT

from lad_pl.cli import main
from lad_pl.data import DemoData, PhotoData
from lad_pl.demo.card import write_card
from lad_pl.errors import UserError
from lad_pl.files import asset
from lad_pl.methods import METHODS
from lad_pl.readouts import READOUTS

PAGES = [
    *("README.md", "CHANGELOG.md", "data/README.md", "benchmarks/README.md"),
    *("checkpoints/demo-vlm/README.md", "checkpoints/demo-hard-vlm/README.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
LIGHTNING = ("fit", "validate", "test", "predict")
UNKNOWN = "--no-such-option"
QUIET = ["--trainer.enable_progress_bar=false"]
QUICK = {
    "fit": QUIET,
    "test": ["--data.num_test=8", *QUIET],
    "report": ["--gallery=2"],
    "sweep": ["--draws=2", "--plots=false"],
    "compare": ["--draws=200"],
}
"""Options added to a command that runs, so that it takes seconds."""
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAMS = ("python", "python3", "torchrun", "srun", "make")


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]

    @property
    def module(self) -> str | None:
        """What follows -m."""
        return self.words[self.words.index("-m") + 1] if "-m" in self.words else None

    @property
    def arguments(self) -> list[str]:
        """What follows the module."""
        return [*self.words[self.words.index("-m") + 2 :]]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"[:120]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "") -> list[str]:
    return [block for kind, block in _FENCED.findall(text_of(page)) if kind == language]


def _one_line(text: str) -> str:
    return " ".join(text.split())


@cache
def commands() -> tuple[Command, ...]:
    """What a shell would run of the fenced blocks, and the complete commands in the text: each once."""
    found = []
    for page in PAGES:
        in_text = re.findall(r"(?<!`)`(python -m [^`]+)`", _FENCED.sub("", text_of(page)))
        complete = [
            line
            for line in map(_one_line, in_text)
            if "..." not in line and not re.fullmatch(r"python -m lad_pl \w+", line)
        ]
        scripts = [block for block in blocks(page) if re.search(rf"(^|[\s/])({'|'.join(_PROGRAMS)}) ", block)]
        for script in (*scripts, *complete):
            found += [Command(page, words) for words in _recorded(script)]
    return tuple(dict.fromkeys(found))


def _recorded(script: str) -> list[tuple[str, ...]]:
    """The words of the programs that bash calls in a script, without calling any."""
    stubs = [f"{name}() {{ printf '%s\\0' {name} \"$@\" $'\\x1e'; }}" for name in _PROGRAMS]
    lines = "\n".join([*stubs, script.replace(".venv/bin/python", "python")])
    bash = [str(shutil.which("bash")), "-c", lines]
    result = subprocess.run(bash, env={"PATH": ""}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return [tuple(call.split("\0")[:-1]) for call in result.stdout.decode().split("\x1e\0")[:-1]]


def _of(module: str) -> list[Command]:
    return [command for command in commands() if command.module == module]


# ---------------------------------------------------------------------------------------- every command is parsed


def _exit_code(arguments: list[str]) -> object:
    """Of a command that may end by SystemExit, as the parser does after a help text."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def _is_help(command: Command) -> bool:
    return any(word in ("--help", "--help-all", "--data.help", "--version", "--print_config") for word in command.words)


@cache
def _lightning_parser(command: str, configured: bool):
    """The command line's parser for a command, as main makes it with or without a configuration."""
    made = []

    def keep(cli, parser, arguments) -> None:
        made.append(parser)
        raise UserError("Kept.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LightningCLI, "parse_arguments", keep)
        assert main([command, *(["--config=configs/qwen.yaml"] if configured else [])]) == 2
    return made[0]


@pytest.mark.parametrize(
    "command", [c for c in _of("lad_pl") if c.arguments[0] in LIGHTNING and not _is_help(c)], ids=str
)
def test_a_command_with_a_model_is_parsed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    configured = bool({"--config", "--model.vlm.path"} & {*command.words})
    parsed = _lightning_parser(command.arguments[0], configured).parse_args(command.arguments)
    model = parsed[command.arguments[0]].model
    assert {*model.readouts} <= {*READOUTS}
    assert {*model.methods} <= {*METHODS}


@pytest.mark.parametrize(
    "command", [c for c in _of("lad_pl") if c.arguments[0] not in LIGHTNING and not _is_help(c)], ids=str
)
def test_a_command_without_a_model_is_parsed(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to one option more than the page has: so the parser reads all of it and nothing runs."""
    assert main([*command.arguments, UNKNOWN]) == 2
    assert f"nrecognized arguments: {UNKNOWN}." in capsys.readouterr().err


@pytest.mark.parametrize("command", [c for c in _of("lad_pl") if _is_help(c)], ids=str)
def test_help_is_printed(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(command.arguments) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [c for c in commands() if (c.module or "").startswith("benchmarks.") and c.arguments], ids=str
)
def test_a_benchmark_is_parsed(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", [command.module, *command.arguments, UNKNOWN])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(str(command.module), run_name="__main__")
    assert end.value.code == 2
    assert f"nrecognized arguments: {UNKNOWN}" in capsys.readouterr().err


def test_other_programs_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    modules = {command.module for command in commands()} - {None, "pip", "venv"}
    assert "lad_pl.demo.train" in modules
    assert [name for name in modules if importlib.util.find_spec(str(name)) is None] == []
    targets = re.findall(r"^(\w+):", text_of("Makefile"), re.MULTILINE)
    assert {command.words[1] for command in commands() if command.words[0] == "make"} == {"demo", "test"}
    assert {target for page in PAGES for target in re.findall(r"`make (\w+)`", text_of(page))} <= {*targets}


# ------------------------------------------------------------------------------------------ those that run here


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder in which the README's first commands were typed, on 20 samples, and what they printed."""
    if not (asset("checkpoints/demo-vlm") / "model.safetensors").exists():
        pytest.skip("the demo model is not here")
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with redirect_stdout(StringIO()) as printed:
            assert main(["fit", *QUIET]) == 0
            assert main(["test", "--data.num_test=20", *QUIET]) == 0
        yield folder, printed.getvalue()


@pytest.fixture
def demo(typed: tuple[Path, str]) -> Path:
    return typed[0]


def _words_of(table: str) -> str:
    """Everything but the figures, which in the README are those of 300 samples, and the line breaks."""
    lines = [re.sub(r" \d.*", "", line).rstrip() for line in table.splitlines() if " samples x " not in line]
    return " ".join(" ".join(line for line in lines if not line.startswith(("─", "Calibrated"))).split())


def test_the_tables_in_the_readme_are_the_printed_ones(typed: tuple[Path, str]) -> None:
    table = next(block for block in blocks("README.md") if "300 samples x" in block)
    assert "head_information" in _words_of(table)
    assert _words_of(table) == _words_of(typed[1])


def _on_the_demo(command: Command) -> bool:
    """``report`` runs with one's own readout below."""
    return (
        command.page == "docs/analysis.md"
        and command.arguments[0] in ("sweep", "compare")
        and {"checkpoints/other", "checkpoints/demo-50"}.isdisjoint(command.words)
    )


@pytest.mark.parametrize("command", filter(_on_the_demo, _of("lad_pl")), ids=str)
def test_analysis_runs_on_the_demo(command: Command, demo: Path) -> None:
    assert main([*command.arguments, *QUICK[command.arguments[0]]]) == 0


def test_the_demo_page_lists_what_its_commands_measure(demo: Path) -> None:
    """Of one sample under two permutations in place of 300 under five."""
    run = "checkpoints/demo-all"
    fit, test = (c.arguments for c in _of("lad_pl") if c.page == "docs/demo.md" and run in c.words)
    assert main([*fit, *QUIET]) == 0
    assert main([*test, "--data.num_test=1", "--data.num_permutations=2", "--model.method.chains=1", *QUIET]) == 0
    measured = yaml.safe_load((demo / run / "metrics.json").read_text())["readouts"]
    rows = re.findall(r"^\| `(\w+)` \|", text_of("docs/demo.md"), re.MULTILINE)
    assert rows == [*measured]


def test_pandas_reads_the_files(demo: Path) -> None:
    block = next(block for block in blocks("docs/formats.md", "python") if "pandas" in block)
    assert 0 <= eval(block.splitlines()[-1], _executed(block)) <= 1


def _executed(block: str) -> dict:
    names: dict = {}
    exec(compile(block, "formats.md", "exec"), names)
    return names


# --------------------------------------------------------------------------------- one's own readout and method


@contextmanager
def _unchanged(*registries: dict) -> Iterator[None]:
    """Registries are as before when the block is left."""
    before = [dict(registry) for registry in registries]
    try:
        yield
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry.clear()
            registry.update(entries)


@pytest.mark.parametrize("name", ["all_layers", "polite"])
def test_an_own_readout_and_an_own_method_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files and commands of the page, on 8 samples."""
    script = next(block for block in blocks("docs/extending.md", "python") if block.startswith(f'"""{name}:'))
    (tmp_path / f"{name}.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    typed = [c.words[1:] for c in commands() if c.words[:2] == ("python", f"{name}.py")]
    assert [words[1] for words in typed][:2] == ["fit", "test"]
    for words in typed:
        monkeypatch.setattr(sys, "argv", [*words, *QUICK[words[1]]])
        with _unchanged(READOUTS, METHODS), pytest.raises(SystemExit) as end:
            runpy.run_path(f"{name}.py", run_name="__main__")
        assert end.value.code == 0, words
    run = tmp_path / "checkpoints" / name
    assert name in yaml.safe_load((run / "metrics.json").read_text())["readouts"]
    assert name in (run / "report" / "index.html").read_text()


def test_python_blocks_import_what_there_is() -> None:
    found = 0
    for page in PAGES:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lad_pl"):
                    for alias in node.names:
                        pkgutil.resolve_name(f"{node.module}:{alias.name}")
                        found += 1
    assert found > 5


# -------------------------------------------------------------------------------------------------- links and names


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_anchor, headings), target


def test_every_page_is_linked_from_the_readme() -> None:
    assert {page for page in PAGES if page.startswith("docs/")} <= {*re.findall(r"\]\(([^)#]+)", text_of("README.md"))}


@pytest.mark.parametrize("page", PAGES)
def test_named_modules_and_paths_exist(page: str) -> None:
    text = text_of(page)
    if page == "CHANGELOG.md":  # a row begins with the name that is no more
        text = re.sub(r"^\| `[^|]*\|", "", text, flags=re.MULTILINE)
    for name in re.findall(r"(?<![\w/.])lad_pl(?:\.\w+)+(?::\w+)?", text):
        pkgutil.resolve_name(name)
    for path in re.findall(r"(?<![\w/.-])(?:lad_pl|tests|benchmarks|configs|docs)/[\w/.-]*\w", text):
        assert (ROOT / path).exists(), path


def test_options_in_the_text_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert _exit_code(["test", "--config=configs/qwen.yaml", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    config["data"] = dict.fromkeys(
        [
            *config["data"]["init_args"],
            *inspect.signature(DemoData).parameters,
            *inspect.signature(PhotoData).parameters,
        ]
    )
    names = {
        name
        for page in PAGES
        for name in re.findall(r"(?<![\w.])(?:model|data|trainer)\.[\w.]*\w", _FENCED.sub("", text_of(page)))
    }
    assert len(names) > 30
    for name in sorted(names - {"data.help", "model.generate"}):
        inner = config
        for part in name.split("."):
            assert part in inner, name
            inner = inner[part] if isinstance(inner, dict) else inner


def test_the_tree_in_the_readme_is_the_package() -> None:
    tree = next(block for block in blocks("README.md") if block.startswith("lad_pl/\n"))
    listed = re.findall(r"^  (\S+?)/? +\S", tree, re.MULTILINE)
    there = {entry for entry in os.listdir(ROOT / "lad_pl") if not entry.startswith("__")}
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("model", ["demo-vlm", "demo-hard-vlm"])
def test_a_demo_model_has_the_card_that_the_package_writes(model: str, tmp_path: Path) -> None:
    for name in ("figures.json", "control.json"):
        if (figures := ROOT / "checkpoints" / model / name).exists():
            shutil.copy(figures, tmp_path)
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == text_of(f"checkpoints/{model}/README.md")
