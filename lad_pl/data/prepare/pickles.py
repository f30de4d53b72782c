"""Safe reading of the published repository's pickles of captions and categories: they cannot run code."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

from lad_pl.errors import UserError

# Protocols below 3 use the Python 2 name of the module builtins.
_ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset, list, dict)
    },
    ("collections", "defaultdict"): defaultdict,
    ("collections", "OrderedDict"): OrderedDict,
}


class _PlainUnpickler(pickle.Unpickler):
    """Resolves plain containers only; anything that could run code would have to be resolved here first."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _ALLOWED[module, name]


def read_pickle(path: str | Path) -> Any:
    """Unpickle a file of plain values: dicts, lists, sets, tuples, texts and numbers.

    Raises:
        UserError: the file is missing, no pickle, or refers to any other class or function.
    """
    try:
        with Path(path).open("rb") as file:
            return _PlainUnpickler(file).load()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(
            f"{path} is not a pickle of plain captions or categories ({error}); nothing else is loaded from a pickle. "
            "Take the official JSON file instead."
        ) from error
