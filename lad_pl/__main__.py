"""The program, ``python -m lad_pl`` and the ``lad_pl`` script, which Ctrl-C ends in one line from its first moment."""

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def run() -> int:
    """Run the command that was typed.

    Returns:
        The exit code of :func:`lad_pl.cli.main`, or 1 after Ctrl-C.
    """
    try:
        import signal

        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else ignored, as after nohup
        if ours:
            signal.signal(signal.SIGINT, _handler())
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # whatever a name holds

        from lad_pl.cli import main

        code = 1
        try:
            code = main()
        finally:
            if ours:  # while the interpreter ends, there is nothing left to stop
                signal.signal(signal.SIGINT, lambda *_: os._exit(code))
        return code
    except KeyboardInterrupt:  # so early, or so late, that main did not see it
        _end()


def _handler() -> "Any":
    """A handler of SIGINT that raises KeyboardInterrupt, once, wherever it will be seen."""
    import time

    import lad_pl.errors  # noqa: F401 (_end must not be the first to import it, in the midst of another import)

    process = os.getpid()
    pressed: list[float] = []

    def stop(signum: int, frame: "Any") -> None:
        if os.getpid() != process and _is_helper():
            return  # the process that has forked it ends it
        now = time.monotonic()
        if pressed and now < pressed[0] + 1:
            return  # the same press, or an impatient one; clearing up takes a moment
        pressed.append(now)
        # Whoever presses again does not want to wait. During an import, libraries hide what is raised, or turn it into
        # an error of theirs; nothing has to be cleared up then.
        if len(pressed) > 1 or _is_importing(frame):
            _end()
        raise KeyboardInterrupt

    def unraisable(details: "Any") -> None:
        if issubclass(details.exc_type, KeyboardInterrupt):  # raised in a finalizer, where it is lost
            _end()
        sys.__unraisablehook__(details)

    sys.unraisablehook = unraisable
    return stop


def _is_helper() -> bool:
    """Whether this forked process loads data, or is too young to know what it will do."""
    processes = sys.modules.get("multiprocessing.process")
    return processes is None or processes.parent_process() is None or processes.current_process().daemon


def _is_importing(frame: "Any") -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end() -> "NoReturn":
    """End this process at once, with one line if it is the first of its run."""
    from lad_pl.errors import STOPPED

    if all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK")):
        os.write(2, f"lad_pl: {STOPPED}\n".encode())
    os._exit(1)


if __name__ == "__main__":
    sys.exit(run())
