"""Processes that a command starts and must not leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Makes the end of a terminal or of a cluster job do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
                before[getattr(signal, name)] = signal.signal(getattr(signal, name), interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    """Asks processes to end, waits for them to save, then ends them with all their workers.

    Args:
        processes: each started in a session of its own.
        patience: seconds that they get to save.
    """
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + patience
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
    finally:  # also when the user loses patience earlier
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)  # also the workers of a command that has ended
                else:
                    process.kill()
