"""Processes that work for this one: Ctrl-C is its own matter, and they end with it, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any


class Workers(ProcessPoolExecutor):
    """Spawned processes, as nnU-Net's are; threads of a forked SimpleITK hang.

    An error within ``with`` leaves out what they have not begun.

    Args:
        processes: how many.
        begin: what each does first, with its arguments.
    """

    def __init__(self, processes: int, begin: Callable[..., None] | None = None, *arguments: Any):
        spawn = multiprocessing.get_context("spawn")
        super().__init__(processes, spawn, initializer=_begin, initargs=(begin, arguments))

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """See :class:`concurrent.futures.Executor`."""
        with _without_interrupts():  # what starts here inherits that, from its first moment
            return super().submit(function, *arguments, **named)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shutdown(cancel_futures=kind is not None)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not blocked
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    """Ends this process when the other one was killed, which would leave it waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
