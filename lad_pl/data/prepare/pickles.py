"""Safe reading of the published repository's pickles of captions and categories: they cannot run code."""

from __future__ import annotations

import gc
import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from lad_pl.errors import UserError, first_line
from lad_pl.files import brief

# Protocols below 3 use the Python 2 name of the module builtins.
_ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset, list, dict)
    },
    ("collections", "defaultdict"): defaultdict,
    ("collections", "OrderedDict"): OrderedDict,
}


_REFUSED = (
    *(pickle.BUILD, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.BINPERSID),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.LONG4),
)
"""Opcodes of objects and of numbers of thousands of digits."""
_LIBRARY: Any = pickle  # whose types do not tell of all that its unpickler in Python is made of
_CONTAINERS = (dict, list, tuple, set, frozenset)
_DEPTH = 100
_STEPS = 2_800_000
"""Opcodes at most; 123,000 images with five captions each need two million."""
_MADE = 350_000
"""Containers at most."""
_SHARED = 500_000
"""Values that a pickle may hold beyond its opcodes, by sharing lists or sets."""
_LARGEST_KEY = 2**60
"""Integers below are their own hash; larger ones can be chosen to collide by the thousand."""


class _PlainUnpickler(pickle._Unpickler):
    """Resolves plain containers only; anything that could run code would have to be resolved here first.

    It is the standard library's own in Python: the one in C would hash a tuple of tuples, which takes exponential time
    if they are shared and overflows the stack if they are deep, and reserve memory for whatever index a file names.
    It stops at more opcodes or containers than captions of the file's size need.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        file = io.BytesIO(content)
        super().__init__(file)
        self.steps = min(_STEPS, 1_000_000 + len(content) // 4)
        self.containers_left = min(_MADE, 100_000 + len(content) // 16)
        # As the library's `load` begins, whose loop has no end but the file's.
        self._unframer = _LIBRARY._Unframer(file.read, file.readline)
        self.read, self.readinto = self._unframer.read, self._unframer.readinto
        self.readline = self._unframer.readline
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0

    def load(self) -> Any:
        dispatch, read = self.dispatch, self.read
        try:
            for _ in range(self.steps):
                opcode = read(1)
                if not opcode:
                    raise EOFError("it is cut off")
                dispatch[opcode[0]](self)
        except _LIBRARY._Stop as stop:
            return stop.value
        raise _too_much()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _ALLOWED[module, name]


def _too_much() -> pickle.UnpicklingError:
    return pickle.UnpicklingError("it has many more parts than captions need")


# --------------------------------------------------------------------------------------- checks around single opcodes


def _made(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_container(unpickler: Any) -> None:
        unpickler.containers_left -= 1
        if unpickler.containers_left < 0:
            raise _too_much()
        load(unpickler)

    return load_container


def _made_tuple(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_tuple(unpickler: Any) -> None:
        load(unpickler)
        if any(isinstance(item, tuple) for item in unpickler.stack[-1]):
            raise pickle.UnpicklingError("it has tuples within tuples")

    return load_tuple


def _called(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_call(unpickler: Any) -> None:
        made, arguments = unpickler.stack[-2:]
        for values in arguments:
            if not isinstance(values, _CONTAINERS):
                continue
            unpickler.containers_left -= len(values) // 8  # else a large one could be copied again and again
            if made in (set, frozenset):
                _check_hashed(values)
            elif made is not list and not isinstance(values, dict):
                _check_keys([key for key, _ in values], ())
        load(unpickler)

    return load_call


def _set_item(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_item(unpickler: Any) -> None:
        _check_keys(unpickler.stack[-2:-1], unpickler.stack[-3])
        load(unpickler)

    return load_item


def _set_items(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_items(unpickler: Any) -> None:
        _check_keys(unpickler.stack[::2], unpickler.metastack[-1][-1])
        load(unpickler)

    return load_items


def _made_dict(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_dict(unpickler: Any) -> None:
        _check_keys(unpickler.stack[::2], {})
        load(unpickler)

    return load_dict


def _added(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_members(unpickler: Any) -> None:
        _check_hashed(unpickler.stack)
        load(unpickler)

    return load_members


def _check_keys(keys: Sequence[Any], held: Any) -> None:
    """Refuse keys that stand twice in a mapping: which of the values is meant cannot be known."""
    _check_hashed(keys)
    if not isinstance(held, dict | tuple):
        raise pickle.UnpicklingError("it sets items of what is no dict")
    new = set()
    for key in keys:
        if key in held or key in new:
            raise pickle.UnpicklingError(f"a dict has the key {brief(key)} twice")
        new.add(key)


def _check_hashed(values: Iterable[Any]) -> None:
    for value in values:
        if type(value) is not str and (type(value) is not int or abs(value) >= _LARGEST_KEY):
            raise pickle.UnpicklingError(f"a key or a set's member is {brief(value)}, neither a name nor a number")


def _refuse(_: Any) -> None:
    raise pickle.UnpicklingError("it has objects, or a number of thousands of digits")


for _check, _opcodes in {
    _made_tuple: (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    _called: (pickle.REDUCE,),
    _set_item: (pickle.SETITEM,),
    _set_items: (pickle.SETITEMS,),
    _made_dict: (pickle.DICT,),
    _added: (pickle.ADDITEMS, pickle.FROZENSET),
    _made: (
        *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_SET, pickle.DICT, pickle.LIST, pickle.FROZENSET),
        *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.REDUCE),
    ),
}.items():
    for _opcode in _opcodes:
        _PlainUnpickler.dispatch[_opcode[0]] = _check(_PlainUnpickler.dispatch[_opcode[0]])
_PlainUnpickler.dispatch.update(dict.fromkeys((_opcode[0] for _opcode in _REFUSED), _refuse))


@contextmanager
def _without_collector() -> Iterator[None]:
    """The garbage collector looks at every container again and again, which takes as long as the reading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_pickle(path: str | Path) -> Any:
    """Unpickle a file of plain values: dicts, lists, sets, tuples, texts and numbers.

    Raises:
        UserError: the file is missing, no pickle, refers to any other class or function, has a key twice or many more
            parts than captions need, or holds many times what is written in it, because its parts are shared.
    """
    try:
        unpickler = _PlainUnpickler(Path(path).read_bytes())
        with _without_collector():
            content = unpickler.load()
            _check_size(content, unpickler.steps + _SHARED)
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
