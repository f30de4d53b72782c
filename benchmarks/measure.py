"""Repeated measurements, taken in turns, and the table that they end in."""

from __future__ import annotations

import functools
import inspect
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import torch
from jsonargparse import ArgumentParser, set_parsing_settings
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from lad_pl.errors import UserError

MB = 2**20
Clock = Literal["wall", "cpu"]
Seconds = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Figure:
    """One line of a table: what was measured in every repeat, and what it is to reach."""

    name: str
    values: tuple[float, ...]
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"at most {self.at_most:g}{self.unit}"
        return "" if self.at_least is None else f"at least {self.at_least:g}{self.unit}"

    @property
    def reached(self) -> bool | None:
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least

    def row(self) -> tuple[str, ...]:
        spread = f"{_short(min(self.values))} to {_short(max(self.values))}" if len(self.values) > 1 else ""
        verdict = {True: "yes", False: "no", None: ""}[self.reached]
        return self.name, self.target, f"{_short(self.median)}{self.unit}", spread, verdict, self.note

    def line(self) -> str:
        """The row without its column heads."""
        name, *rest = self.row()
        return f"{name}: {', '.join(filter(None, rest))}"


class Stopwatch:
    """Seconds spent inside the functions that it is put around, calls within calls counted once.

    They measure a cost that is below the spread of the wall time, too.
    """

    def __init__(self, clock: Clock = "wall") -> None:
        self.seconds = 0.0
        self.laps: list[float] = []
        """Seconds of each call of what :meth:`lapped` returned."""
        self._clock = clock
        self._running = False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            returned: list[Any] = []
            self._running = True
            try:
                self.seconds += timed(lambda: returned.append(function(*args, **kwargs)), self._clock)
            finally:
                self._running = False
            return returned[0]

        return watched

    @contextmanager
    def inside(self, *functions: tuple[Any, str]) -> Iterator[Stopwatch]:
        """Put it around functions, each named by its owner and its name there, while the block runs."""
        with ExitStack() as stack:
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, self.around(getattr(owner, name))))
            yield self

    def lapped(self, work: Callable[[], Any], *functions: tuple[Any, str]) -> Callable[[], None]:
        """The work, with the watch put around functions while it is done."""

        def lap() -> None:
            before = self.seconds
            with self.inside(*functions):
                work()
            self.laps.append(self.seconds - before)

        return lap


def interleaved(variants: Mapping[str, Callable[[], Any]], repeats: int, clock: Clock = "wall") -> Seconds:
    """Seconds of each variant; they take turns, every second round in reverse, so that drift meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats):
        for name in list(variants)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[name].append(timed(variants[name], clock))
    return {name: tuple(values) for name, values in seconds.items()}


def timed(work: Callable[[], Any], clock: Clock = "wall") -> float:
    """Seconds until ``work`` is done, on the GPU as well; by the clock ``cpu``, those of this process's threads."""
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    _wait()
    start = now()
    work()
    _wait()
    return now() - start


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """Repeat by repeat."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


def more_than(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """By how many percent the first is above the second, repeat by repeat."""
    return tuple(100 * (ratio - 1) for ratio in ratios(above, below))


def run(script: Callable[[Any], Iterable[Figure]]) -> None:
    """Run a script's function, whose one parameter is a dataclass of options, and print its figures as a table."""
    disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    name = script.__name__
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    (parameter,) = inspect.signature(script, eval_str=True).parameters.values()
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=inspect.getdoc(script))
    parser.add_class_arguments(parameter.annotation, as_group=False)
    try:
        options = parameter.annotation(**parser.parse_args().as_dict())
        measured = list(_announced(script(options)))
    except UserError as error:
        sys.exit(f"{name}: {error}")
    show(name, measured)


def _announced(figures: Iterable[Figure]) -> Iterator[Figure]:
    """The figures, each also printed on stderr at once: a script that is stopped has not run for nothing."""
    for figure in figures:
        print(figure.line(), file=sys.stderr, flush=True)
        yield figure


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print figures as a table in Markdown, with the command and the machine."""
    table = Table("", "to reach", "median", "range", "reached", "", box=box.MARKDOWN)
    for figure in figures:
        table.add_row(*figure.row())
    Console(width=160).print(table)  # wrapped cells are no Markdown
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"Command: python -m benchmarks.{title} {' '.join(sys.argv[1:])}".rstrip())
    print(f"Machine: {where}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"
