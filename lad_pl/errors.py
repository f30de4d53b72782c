"""The one exception that a user can cause and a user can fix."""

from __future__ import annotations


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


def first_line(error: BaseException) -> str:
    """The first line of a library's exception."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__
