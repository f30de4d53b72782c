"""The package's layout: few rooms, imports that run one way, and light modules that stay light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from paths import ROOT

ROOMS = (
    *("errors", "files", "provenance", "types", "demo", "prompts", "data", "readouts", "calibrate", "metrics"),
    *("evidence", "vlm", "methods", "run", "module", "analysis", "generate", "cli", "__main__"),
)
"""A room is a module or a folder of lad_pl; it may import the rooms before it. The package's own ``__init__``, which
imports lazily, stands outside the order."""
HEAVY = {"lightning", "transformers", "matplotlib"}


class Import(NamedTuple):
    """One imported module, and whether importing the file runs it (not within a function or TYPE_CHECKING)."""

    module: str
    at_import: bool


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    names = {path: list(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / package).rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


FILES = modules("lad_pl") | modules("benchmarks")


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What a file imports, submodules named in ``from package import submodule`` included."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    return tuple(found for node in tree.body for found in imports_within(node, module, True))


def imports_within(node: ast.AST, module: str, at_import: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, at_import) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.module and not node.level, f"{module} has a relative import; name the module in full"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (Import(name if name in FILES else node.module, at_import) for name in names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for part in node.body:
            yield from imports_within(part, module, False)
        for part in node.orelse:
            yield from imports_within(part, module, at_import)
    else:
        at_import = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for part in ast.iter_child_nodes(node):
            yield from imports_within(part, module, at_import)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def edges(package: str) -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports."""
    return {
        module: {found.module for found in imports(module) if found.module.split(".")[0] == package}
        for module in modules(package)
    }


def test_the_top_level_can_be_taken_in_at_a_glance() -> None:
    entries = [path.name for path in (ROOT / "lad_pl").iterdir() if path.name not in ("__pycache__", "assets")]
    assert len(entries) <= 20
    assert {Path(name).stem for name in entries} - {"__init__"} == set(ROOMS)


def test_imports_run_downwards() -> None:
    upwards = [
        f"{module} imports {target}"
        for module, targets in edges("lad_pl").items()
        for target in targets
        if module != "lad_pl"
        and room(module) != room(target)
        and (target == "lad_pl" or ROOMS.index(room(target)) > ROOMS.index(room(module)))
    ]
    assert not upwards, "\n".join(sorted(upwards))


@pytest.mark.parametrize("package", ["lad_pl", "benchmarks"])
def test_no_files_import_one_another_in_a_circle(package: str) -> None:
    assert not circle(edges(package))


@pytest.mark.parametrize("module", ["lad_pl.readouts", "lad_pl.calibrate"])
def test_the_maths_needs_torch_alone(module: str) -> None:
    """Whatever importing it runs, the ``__init__`` of every package on the way included."""
    reached, upcoming = set(), [(module,)]
    while upcoming:
        way = upcoming.pop()
        parts = way[-1].split(".")
        assert parts[0] not in HEAVY, " > ".join(way)
        for name in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            if name in FILES and name not in reached:
                reached.add(name)
                upcoming += [(*way, found.module) for found in imports(name) if found.at_import]
    assert len(reached) > 3


def test_benchmarks_need_no_tests() -> None:
    helpers = {path.stem for path in (ROOT / "tests" / "helpers").iterdir()}
    for module in modules("benchmarks"):
        assert not {found.module.split(".")[0] for found in imports(module)} & {"tests", *helpers}, module
