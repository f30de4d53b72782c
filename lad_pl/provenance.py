"""Recorded settings: library versions, digests, and the first difference between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("lad_pl", "torch", "transformers", "lightning")


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that take part in a forward pass."""
    return {name: _version(name) for name in LIBRARIES}


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first field in which two nested mappings differ, as ``field: <there> there, <here> here``.

    >>> first_difference({"prompt": {"template": "a"}}, {"prompt": {"template": "b"}})
    "prompt.template: 'a' there, 'b' here"
    """
    old, new = flattened(there), flattened(here)
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            return f"{name}: {old.get(name)!r} there, {new.get(name)!r} here"
    return None


def short_digest(content: Any, length: int = 16) -> str:
    """The first ``length`` hexadecimal digits of the SHA-256 of plain values, as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:length]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "unknown"


def flattened(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping's values by their dotted names.

    >>> flattened({"prompt": {"template": "a"}})
    {'prompt.template': 'a'}
    """
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
