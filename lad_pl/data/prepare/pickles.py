"""Safe reading of the published repository's pickles of captions and categories: they cannot run code."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from lad_pl.errors import UserError, first_line

# Protocols below 3 use the Python 2 name of the module builtins.
_ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset, list, dict)
    },
    ("collections", "defaultdict"): defaultdict,
    ("collections", "OrderedDict"): OrderedDict,
}


_CONTAINERS = (dict, list, tuple, set, frozenset)
_DEPTH = 100
_SHARED = 1_000_000
"""Values that a pickle may hold beyond its own size in bytes, by sharing lists or sets."""


class _PlainUnpickler(pickle._Unpickler):
    """Resolves plain containers only; anything that could run code would have to be resolved here first.

    It is the standard library's own in Python: the one in C would hash a tuple of tuples, which takes exponential time
    if they are shared and overflows the stack if they are deep, and reserve memory for whatever index a file names.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _ALLOWED[module, name]


def _checked(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_tuple(unpickler: Any) -> None:
        load(unpickler)
        if any(isinstance(item, tuple) for item in unpickler.stack[-1]):
            raise pickle.UnpicklingError("it has tuples within tuples")

    return load_tuple


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _PlainUnpickler.dispatch[_opcode[0]] = _checked(_PlainUnpickler.dispatch[_opcode[0]])


def read_pickle(path: str | Path) -> Any:
    """Unpickle a file of plain values: dicts, lists, sets, tuples, texts and numbers.

    Raises:
        UserError: the file is missing, no pickle, refers to any other class or function, or holds many times what is
            written in it, because its parts are shared.
    """
    try:
        with Path(path).open("rb") as file:
            content = _PlainUnpickler(file).load()
            _check_size(content, file.tell() + _SHARED)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(
            f"{path} is not a pickle of plain captions or categories ({first_line(error)}); nothing else is loaded "
            "from a pickle. Take the official JSON file instead."
        ) from error
    return content


def _check_size(value: Any, most: int) -> None:
    """Refuse what holds itself, is nested deeply, or holds more than ``most`` values, counted wherever they stand."""
    sizes: dict[int, int] = {}
    open_values = {id(value)}
    waiting = [(value, iter(_parts(value)))]
    while waiting:
        item, parts = waiting[-1]
        part = next((part for part in parts if isinstance(part, _CONTAINERS) and id(part) not in sizes), None)
        if part is not None and id(part) in open_values:
            raise pickle.UnpicklingError("it holds itself")
        if part is not None:
            open_values.add(id(part))
            waiting.append((part, iter(_parts(part))))
            if len(waiting) > _DEPTH:
                raise pickle.UnpicklingError("it is nested too deeply")
            continue
        waiting.pop()
        open_values.remove(id(item))
        sizes[id(item)] = 1 + sum(sizes.get(id(part), 1) for part in _parts(item))
        if sizes[id(item)] > most:
            raise pickle.UnpicklingError("its shared parts hold millions of values")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return (*value, *value.values())
    return value if isinstance(value, _CONTAINERS) else ()
