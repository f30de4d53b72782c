"""The parsers of all commands: jsonargparse's, with stricter values and errors in one line."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lad_pl.cli.configuration import MODE, not_options
from lad_pl.errors import UserError, first_line
from lad_pl.files import expanded

_LARGEST = 2**63
PATHS = (
    *("annotations", "images", "captions", "instances", "dataset", "source", "categories", "embeddings"),
    *("pretrained", "output", "out"),
)
"""Options of the commands without a model that are paths; beside all that are declared as Path."""
_NO_PATHS = ("", "null")
_UNKNOWN = re.compile(r"(?:unrecognized arguments: |Option ')([-\w.+]+)")
_ODD = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, SyntaxError),
    *(TypeError, ValueError),
)


class StrictParser(ArgumentParser):
    """Refuses values where the option's type has no null, or no infinity.

    jsonargparse itself takes ``null`` for "not given" wherever it stands. The parsers of the classes that a value
    names, such as a data class, are of the same kind, so that a user's own classes are checked as well.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"parser_mode": MODE, "exit_on_error": False, "allow_abbrev": False, **options})

    def add_argument(self, *args: Any, **options: Any) -> Any:
        """Add an option; ``--option+=value`` adds to a default that is a tuple as to a list."""
        if isinstance(options.get("default"), tuple):
            options["default"] = list(options["default"])
        return super().add_argument(*args, **options)

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Namespace:
        """Parse a configuration file; its name stands before what is wrong in it."""
        try:
            return super().parse_path(path, *args, **options)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no UTF-8 text; save it as UTF-8.") from error

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", **options: Any) -> Namespace:
        """Parse the text of a configuration, which may not be empty."""
        if not content.strip():
            raise UserError(f"{path or 'The configuration'} is empty; write options into it, or leave it out.")
        return super().parse_string(content, path, **options)

    def parse_args(  # type: ignore[override]
        self, args: Any = None, *positional: Any, **options: Any
    ) -> Namespace:
        """Parse a command line.

        Raises:
            UserError: an option has an empty value, or one that no option can have.
            argparse.ArgumentError: an option cannot be parsed.
        """
        try:
            return super().parse_args(args, *positional, **options)
        except _ODD as error:  # values that jsonargparse does not foresee
            raise UserError(f"The options cannot be read ({type(error).__name__}: {first_line(error)}).") from error

    def validate(self, namespace: Namespace, *positional: Any, **options: Any) -> None:
        """Check the values of all options.

        Raises:
            UserError: a section is empty, a value is ``null`` where the type has none, or no finite number.
            TypeError, KeyError: as jsonargparse.
        """
        self._check_all(namespace)
        super().validate(namespace, *positional, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise an ArgumentError; of a mistyped option it names the one that is meant."""
        typed = _UNKNOWN.search(message)
        if typed and "did you mean" not in message and "before subcommand" not in message:
            close = _close_to(typed[1], {*self._all_options()})
            message += f" (did you mean {close}?)" if close else ""
        return super().error(message, ex)

    def _check_all(self, namespace: Namespace) -> None:
        """Before jsonargparse's own checks, which would name what is missing first."""
        for name in self.groups or ():
            if name in namespace and not isinstance(namespace[name], Namespace):
                raise UserError(f"{name} {not_options(namespace[name])}")
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name in action.choices.keys() & vars(namespace):
                    action.choices[name]._check_all(namespace[name])
            elif action.dest in namespace:
                self._check_value(action, namespace[action.dest])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if value is None and action.default is not None:
            try:
                super().validate(Namespace({action.dest: None}), skip_unset=False, skip_required=True)
            except TypeError as error:
                raise UserError(f"{action.dest} is null, and has no such value; give one, or leave it out.") from error
        for name, number in _numbers(value, action.dest):
            if isinstance(number, float) and not math.isfinite(number) and not _allows_infinity(action, number):
                raise UserError(f"{name} is {number}; it must be a finite number.")
            if isinstance(number, int) and not -_LARGEST <= number < _LARGEST:
                raise UserError(f"{name} is {number:.3e}, which is too large for a number.")

    def _all_options(self) -> Iterator[str]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._all_options()
            yield from action.option_strings


def _close_to(typed: str, options: set[str]) -> str:
    """The option that is most like a typed one, dashes before both or neither; empty if none is."""
    if not typed.startswith("-"):
        options = {option.lstrip("-") for option in options}
    longer = sorted(option for option in options if option.startswith(typed))
    return next(iter(longer or get_close_matches(typed, sorted(options), n=1, cutoff=0.75)), "")


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int | float]]:
    """The numbers within a value, by name; those of a class that it names are checked by that class's parser."""
    if isinstance(value, Namespace):
        value = {} if "class_path" in value else vars(value)
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(part, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part, name)
    elif isinstance(value, int | float):
        yield name, value


def _allows_infinity(action: argparse.Action, value: float) -> bool:
    """Whether an option's description or default speaks of infinity."""
    described = re.search(r"\b(inf|infinity|infinite)\b", str(action.help or ""))
    return value == action.default or (bool(described) and not math.isnan(value))


class Parser(StrictParser):
    """Of the commands that need no model."""

    def parse_args(  # type: ignore[override]
        self, args: Any = None, *positional: Any, **options: Any
    ) -> Namespace:
        """Parse a command line; ``~`` and variables in paths are replaced.

        Raises:
            UserError: a path is empty, or ``null`` where the option has no such value; or as StrictParser.
        """
        typed = sys.argv[1:] if args is None else list(args)
        for before, argument in zip(["", *typed], typed, strict=False):
            name, equals, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
            option = name.lstrip("-") if name.startswith("--") else ""  # as a Path, the empty one would be "."
            if equals and not value.strip() and option in ("", *PATHS):
                raise UserError(f"{f'--{option}' if option else 'A path or name'} is empty; give one, or leave it out.")
        parsed = super().parse_args(args, *positional, **options)
        _check_paths(parsed)
        return with_paths(parsed, PATHS)


def _check_paths(options: Namespace) -> None:
    """Of a configuration file, too: an empty path would be the current folder, ``null`` a folder of this name."""
    for name, value in vars(options).items():
        if isinstance(value, Namespace):
            _check_paths(value)
        for path in value if isinstance(value, list) else [value]:
            if (isinstance(path, Path) or (isinstance(path, str) and name in PATHS)) and str(path).strip() in _NO_PATHS:
                what = "null, and has no such value" if str(path).strip() else "empty"
                raise UserError(f"--{name} is {what}; give a path, or leave it out.")


def with_paths(value: Any, names: Collection[str], within: str = "") -> Any:
    """A configuration with ``~`` and environment variables in its paths replaced.

    Args:
        value: a namespace of options, or a part of one.
        names: of the options that hold paths; what is declared as Path needs none.
        within: the option that holds the value.

    Raises:
        UserError: a variable is not set.
    """
    if isinstance(value, Namespace):
        for key, part in vars(value).items():
            setattr(value, key, with_paths(part, names, key))
    elif isinstance(value, dict):
        return {key: with_paths(part, names, key) for key, part in value.items()}
    elif isinstance(value, list | tuple):
        return type(value)(with_paths(part, names, within) for part in value)
    elif isinstance(value, Path) or (isinstance(value, str) and within in names):
        return type(value)(expanded(str(value)))
    return value
