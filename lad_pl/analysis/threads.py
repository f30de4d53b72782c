"""One CPU thread for many small operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch keep to one CPU thread inside.

    A sweep or a bootstrap is thousands of operations on a few thousand numbers each: they wait longer for a second
    thread than it saves them, and on a busy machine many times longer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
