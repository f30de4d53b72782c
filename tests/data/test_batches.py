"""Batches hold as many samples as fit, of like length."""

from __future__ import annotations

import math
import multiprocessing
import socket
import sys
import time
from multiprocessing.resource_sharer import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lad_pl.data.batches import plan_batches, quiet_when_stopped


@pytest.mark.parametrize("seed", range(5))
def test_plans_hold_every_sample_once_and_little_padding(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = (700 + generator.integers(1, 120, 500)).tolist()
    plan = plan_batches(lengths, 5, None, 32_768)
    assert sorted(sample for batch in plan for sample in batch) == list(range(500))
    padded = sum(len(batch) * max(lengths[sample] for sample in batch) for batch in plan)
    assert padded / sum(lengths) < 1.05
    assert all(5 * len(batch) * max(lengths[sample] for sample in batch) <= 32_768 for batch in plan)
    assert len(plan) <= 1.1 * math.ceil(5 * sum(lengths) / 32_768)
    assert max(lengths) == lengths[plan[0][0]]


def test_a_sample_beyond_the_budget_travels_alone() -> None:
    assert plan_batches([50, 10, 10], 2, None, 40) == [[0], [1, 2]]


def test_samples_of_one_length_keep_their_order() -> None:
    assert plan_batches([0] * 5, 4, 2, 1) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_worker_says_nothing_when_a_batch_is_not_taken(error: type[Exception] | None, tmp_path: Path) -> None:
    """The main process breaks the connection off, as when it is stopped; other errors of the worker are shown."""
    there, here = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_hand_over, args=(there, error, tmp_path / "stderr"))
    worker.start()
    address = here.recv()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
    here.send(None)
    worker.join(30)
    assert worker.exitcode == 0
    assert ("Traceback" in (tmp_path / "stderr").read_text()) == (error is not None)


def _hand_over(pipe: Any, error: type[Exception] | None, stderr: Path) -> None:
    sys.stderr = stderr.open("w")
    sys.excepthook = sys.__excepthook__
    quiet_when_stopped(0)
    if error is not None:
        try:
            raise error
        except error:
            sys.excepthook(*sys.exc_info())
    address, _ = DupFd(0)._id
    pipe.send(address)
    pipe.recv()
    time.sleep(0.1)  # the thread that serves the connection is another one
    sys.stderr.flush()
