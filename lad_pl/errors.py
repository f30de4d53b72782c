"""The one exception that a user can cause and a user can fix."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user typed or supplied is wrong.

    The message is one line: what is wrong (naming the sample, file or field) and what to do. The command line prints
    it without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's exception says, without its further lines."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__
