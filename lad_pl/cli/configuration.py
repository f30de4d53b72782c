"""Configuration files: what a YAML text may hold, before any of it is used.

A stranger's file is read as plain values. What would take forever to unfold, or read differently than it looks, is
refused with its line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from lad_pl.errors import UserError, first_line
from lad_pl.files import expanded

MODE = "lad_pl"
"""The parsers' name for :func:`load`."""
SECTIONS = ("model", "model.vlm", "model.prompt", "model.readout", "model.method", "data", "trainer")
"""The parts of a configuration that hold options: mappings all of them."""
_MAX_DEPTH = 50
_MAX_REPEATED = 1000
_PLAIN = "tag:yaml.org,2002:"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class MalformedText(yaml.YAMLError):
    """A text that is no YAML, or none that is accepted; jsonargparse reads an option's value as plain text then."""


def load(text: str, path: str = "") -> Any:
    """The value of a YAML text, for the parsers: :func:`check` and jsonargparse's own rules for numbers.

    Args:
        text: a configuration file's, or the value of an option.
        path: the file's name; empty for the value of an option.

    Raises:
        MalformedText: the text is no YAML, names a key twice, or names a class by a tag.
        UserError: it would not end; or, of a file, as MalformedText.
    """
    text = text.removeprefix("\ufeff")
    try:
        check(text)
        value = get_loader("yaml")(text)
        _check_parts(value)
    except (yaml.YAMLError, ValueError) as error:
        message = str(error) if isinstance(error, MalformedText) else _flat(error)
        literal = isinstance(error, MalformedText) and text[:1] + text[-1:] == "{}"  # nobody means a plain text by it
        if path or literal:
            raise UserError(f"{path or text}: {message}.") from error
        raise MalformedText(message) from error
    if path and isinstance(value, str):
        return yaml.safe_load(text)  # where all values are empty, jsonargparse takes the text for a text
    return value


def check(text: str) -> None:
    """Go through a YAML text without building anything of it.

    Raises:
        MalformedText: a key stands twice, or a tag names a class.
        UserError: it is nested too deeply, or its aliases repeat too much.
        yaml.YAMLError: it is no YAML.
    """
    open_nodes: list[_Node] = [_Node()]
    sizes: dict[str, int] = {}
    repeated = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise MalformedText(f"line {line}: *{event.anchor} names nothing that is complete")
            repeated += sizes[event.anchor]
            open_nodes[-1].add(sizes[event.anchor])
        elif isinstance(event, yaml.NodeEvent):
            _check_tag(event.tag, line)
            key = event.value if isinstance(event, yaml.ScalarEvent) else None
            if open_nodes[-1].is_mapping:
                open_nodes[-1].check_key(key, line)
            if key is None:
                open_nodes.append(_Node(isinstance(event, yaml.MappingStartEvent), event.anchor))
            else:
                open_nodes[-1].add(1)
                sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.CollectionEndEvent):
            node = open_nodes.pop()
            open_nodes[-1].add(node.size)
            sizes |= {node.anchor: node.size} if node.anchor else {}
        if len(open_nodes) > _MAX_DEPTH:
            raise UserError(f"Line {line} of the configuration is nested more than {_MAX_DEPTH} levels deep.")
        if repeated > _MAX_REPEATED:
            raise UserError(
                f"Line {line} of the configuration: its aliases (*name) repeat more than {_MAX_REPEATED:,} values; "
                "write them out."
            )


@dataclass
class _Node:
    """A mapping or list that is being read."""

    is_mapping: bool = False
    anchor: str | None = None
    size: int = 1
    """Nodes in it, those that aliases repeat included."""
    children: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    """The lines of a mapping's keys."""

    def add(self, size: int) -> None:
        self.size += size
        self.children += 1

    def check_key(self, key: str | None, line: int) -> None:
        """Every other child of a mapping is a key."""
        if self.children % 2 or key is None:
            return
        if key in self.keys:
            raise MalformedText(f"'{key}' stands twice, in lines {self.keys[key]} and {line}; keep one of them")
        self.keys[key] = line


def _check_tag(tag: str | None, line: int) -> None:
    kinds = ("str", "int", "float", "bool", "null", "map", "seq")
    if tag not in (None, "!", *(f"{_PLAIN}{kind}" for kind in kinds)):
        raise MalformedText(f"line {line}: the tag {tag} is not read; a configuration holds plain values")


def _check_parts(value: Any) -> None:
    """Check the classes that a value names, and the texts in it that are YAML: jsonargparse reads them as such."""
    if isinstance(value, dict):
        if not isinstance(value.get("class_path", ""), str):
            raise MalformedText(f"class_path is {value['class_path']!r:.60}; name a class")
        if not isinstance(value.get("init_args", {}), dict):
            raise MalformedText(f"init_args {not_options(value['init_args']).rstrip('.')}")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_parts(part)
    elif isinstance(value, str) and "&" in value and "*" in value:
        with suppress(yaml.YAMLError):
            check(value)


def check_files(arguments: Sequence[str]) -> None:
    """Check the configuration files that are named on the command line, before anything slow is imported.

    Raises:
        UserError: one of them is missing, empty, no YAML, or has a section that is no mapping.
    """
    for path in config_files(arguments):
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a configuration file.")
        if not path.exists() and str(path) != "-":
            raise UserError(f"File does not exist: {path}.")
        if path.is_file():  # a pipe can be read only once
            check_file(path)


def check_file(path: Path) -> None:
    """Check one configuration file.

    Raises:
        UserError: it cannot be read, is empty, no YAML, or has a section that is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text; save it as UTF-8.") from error
    try:
        value = load(text, str(path))
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(str(path)) else f"{path}: {message}") from error
    check_sections(value, str(path))
    twice = [name for name, count in Counter(_names(value)).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {twice[0]} stands twice, by its section and by its dotted name; keep one of them.")


def _names(value: Any, name: str = "") -> Iterator[str]:
    """The dotted names of a configuration's values."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _names(part, f"{name}.{key}".lstrip("."))
    else:
        yield name


def check_sections(value: Any, path: str) -> None:
    """Refuse a configuration that is empty, or has a section that is no mapping.

    Args:
        value: of the whole file.
        path: the file's name.

    Raises:
        UserError: it is or has.
    """
    if value is None:
        raise UserError(f"{path} is empty; write options into it, or leave it out.")
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no options; write them as name: value, one a line.")
    for name in SECTIONS:
        section: Any = value
        for part in name.split("."):
            section = section.get(part, {}) if isinstance(section, dict) else {}
        if not isinstance(section, dict | str):  # a text names a class, or another file
            raise UserError(f"{path}: {name} {not_options(section)}")


def not_options(section: Any) -> str:
    """What is wrong with a section that is no mapping."""
    if section is None:
        return "is empty (null); give options under it, or leave it out."
    return f"is {section!r:.60}; it must hold options, one a line."


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The configuration files that are named on the command line, as values of ``--config``."""
    pairs = zip(["", *arguments], [*arguments, ""], strict=True)
    named = [(argument.partition("=") if "=" in argument else (previous, "", argument)) for previous, argument in pairs]
    return [Path(value) for option, _, value in named if option in ("-c", "--config") and _takes_file(option, value)]


def with_configs(arguments: Sequence[str]) -> list[str]:
    """The command line with ``~`` and variables in the names of configuration files replaced.

    Raises:
        UserError: a variable is not set.
    """
    replaced, previous = [], ""
    for argument in arguments:
        option, given, value = argument.partition("=")
        if given and _takes_file(option, value):
            argument = f"{option}={expanded(value)}"
        elif _takes_file(previous, argument):
            argument = expanded(argument)
        replaced.append(argument)
        previous = argument
    return replaced


def _takes_file(option: str, value: str) -> bool:
    """Whether a value can be the name of a configuration file, and not a configuration itself."""
    return option.lstrip("-") in ("c", "config", *SECTIONS) and bool(value) and not re.search(r"[{\[\n]|: ", value)


def _flat(error: Exception) -> str:
    """A YAML error's message in one line, with the line of the text."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:
        return first_line(error)
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)


set_loader(MODE, load, exceptions=(yaml.YAMLError,))
