"""What runs code of others counts from the command line alone; a configuration file may be a stranger's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from lad_pl.cli.configuration import load
from lad_pl.errors import UserError

_SWITCHES = {
    *("trust_remote_code", "code_revision", "custom_generate", "weights_only"),
    *("use_kernels", "kernel_config", "allow_all_kernels"),
}
"""Options of any name ending in these let transformers fetch code and run it, or unpickle."""


def check_typed(config: Namespace, arguments: Sequence[str]) -> None:
    """Refuse what runs code of others unless it is typed.

    Args:
        config: of one command, all of it.
        arguments: of the command line.

    Raises:
        UserError: a configuration file asks for it.
    """
    typed = list(_typed(arguments))
    for name, value in _options(config):
        if _runs_code(name, value) and (name, value) not in typed:
            option = name.replace(".options.trust", ".trust").replace(".options.attn", ".attn")  # options of their own
            raise UserError(
                f"A configuration file sets {name} to {value!r:.60}, which can run code of others; leave it out there, "
                f"and if you trust it, give --{option} {_as_typed(value)} yourself."
            )


def check_appended(config: Namespace, arguments: Sequence[str]) -> None:
    """Refuse ``--model.layers+=21`` where there is no list to add to: it would be the whole list, in place of a range.

    Raises:
        UserError: as said.
    """
    added = [value for name, value in _typed(arguments) if name == "model.layers+"]
    if added and config.model.layers == added:
        raise UserError("--model.layers+ adds to a list of layers, and there is none; give all with --model.layers.")


def _runs_code(name: str, value: Any) -> bool:
    last = name.rpartition(".")[2]
    if last == "weights_only":
        return value is False
    # Attention and experts come from a repository of kernels where its name, owner/name, is given.
    return bool(value) if last in _SWITCHES else "_implementation" in name and "/" in str(value)


def _options(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of a configuration by dotted names, without ``init_args``: as they are typed."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, Mapping) and value and name.rpartition(".")[2] not in _SWITCHES:
        for key, part in value.items():
            step = "" if key in ("init_args", "dict_kwargs") else f".{key}"
            yield from _options(part, f"{name}{step}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _options(part, f"{name}[{number}]" if isinstance(part, Namespace | Mapping) else name)
    else:
        yield name, value


def _typed(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The values that stand on the command line itself, not in a file that it names."""
    for place, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        option, given, text = argument.partition("=")
        text = text if given else next(iter(arguments[place + 1 :]), "")
        try:
            if Path(text).is_file():
                continue
            value = load(text)
        except (yaml.YAMLError, UserError, OSError, ValueError):
            value = text
        name = "" if option in ("-c", "--config") else option.lstrip("-")
        name = name.replace(".init_args.", ".")
        yield from _options(value, name)
        if isinstance(value, Mapping):
            yield name, text  # an option that holds a text takes it as such


def _as_typed(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)
