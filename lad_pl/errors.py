"""The one exception that a user can cause and a user can fix, and what error lines are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

E = TypeVar("E", bound=BaseException)
STOPPED = "Stopped; run the same command again to go on."
"""What a command says that Ctrl-C has ended, unless it has more to say."""


class UserError(Exception):
    """Something that the user typed or supplied is wrong.

    The message is one line: what is wrong (naming the sample, file or field) and what to do. The command line prints
    it without a traceback and exits with code 2.
    """


def check_at_least(minimum: float, **values: float | None) -> None:
    """Check numbers by their names; ``None``, an unset number, passes.

    >>> check_at_least(1, num_samples=3)

    Raises:
        UserError: a value is below ``minimum``.
    """
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise UserError(f"{name} is {value}; it must be at least {minimum}.")


def caused_by(error: BaseException | None, kind: type[E], fits: Callable[[E], bool] = lambda error: True) -> E | None:
    """An exception of a kind: the given one, or the nearest of those that it comes from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind) and fits(error):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def check_between(minimum: float, maximum: float, **values: float | None) -> None:
    """Check numbers by their names; ``None``, an unset number, passes.

    Raises:
        UserError: a value is below ``minimum`` or above ``maximum``.
    """
    check_at_least(minimum, **values)
    for name, value in values.items():
        if value is not None and not value <= maximum:
            raise UserError(f"{name} is {value}; it must be at most {maximum}.")


def first_line(error: BaseException) -> str:
    """The first line of a library's exception."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__


_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"
_CONTROLS = (range(0x20), range(0x7F, 0xA0))
_DIRECTIONS = ((0x061C, 0x200E, 0x200F), range(0x202A, 0x202F), range(0x2066, 0x2070))
_SHOWN = {
    **{code: f"\\x{code:02x}" for codes in _CONTROLS for code in codes},
    **{code: f"\\u{code:04x}" for codes in _DIRECTIONS for code in codes},
    **dict.fromkeys(map(ord, _SPACES), " "),
}


def printable(text: str) -> str:
    r"""A caption, a file's name or a server's text as one line that a terminal shows and does not obey.

    Control characters, those that turn the direction of text, and undecodable bytes are shown as escapes, line breaks
    as spaces. Every other character stays: letters of all scripts, combining marks, emoji and their joiners.

    >>> print(printable("a\x1b[31m red\ncat \u202egnp.exe"))
    a\x1b[31m red cat \u202egnp.exe
    """
    return text.encode("utf-8", "backslashreplace").decode().translate(_SHOWN)


def say(line: str) -> None:
    """Print a line, whatever names and captions it quotes."""
    print(printable(line))
