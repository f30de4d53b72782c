"""Commands of lad_pl in a process of their own, forked from one that has imported everything.

To start Python and to import torch, Lightning and transformers takes nine seconds; a fork takes none.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import get_context, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["lad_pl.module", "lad_pl.cli.main", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"]
)


def start(arguments: list[str], stderr: Path) -> BaseProcess:
    """``python -m lad_pl ARGUMENTS`` with stderr in a file, in a process group of its own."""
    process = _CONTEXT.Process(target=_run, args=(arguments, stderr))
    process.start()
    return process


def _run(arguments: list[str], stderr: Path) -> None:
    from lad_pl.__main__ import run

    os.setpgrp()
    set_start_method("fork", force=True)  # of data workers, as where no fork server is the parent
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    with stderr.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.argv[1:] = arguments
    sys.exit(run())
