"""Several processes of a test, forked from one that has imported everything but has no threads of its own yet.

Forked from the process of the tests, they would now and then wait for threads (of blosc2) that did not survive.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from time import time
from typing import Any

import torch
from torch import distributed

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["nnunet_mutual.trainers", "nnunet_mutual.engine.parallel.worker", "nnunet_mutual.cli.parser"]
)


def in_processes(folder: Path, work: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """Runs ``work(rank, store, *arguments)`` in each process.

    Args:
        folder: an existing one, for the results and the file in which processes find each other.
        work: what to run, a function of a module.
        arguments: for it.
        size: number of processes.

    Returns:
        What each returned, or the exit status of those that ended without.
    """
    _ready()
    store, given = folder / "store", (size, folder, dict(os.environ), work, arguments)
    started = [CONTEXT.Process(target=_run, args=(rank, *given)) for rank in range(size)]
    for process in started:
        process.start()
    end = time() + 120
    for process in started:
        process.join(max(0.0, end - time()))
    hanging = [process for process in started if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "a process hangs"
    store.unlink(missing_ok=True)
    files = [folder / f"{rank}.pt" for rank in range(size)]
    found = [
        torch.load(file, weights_only=False) if file.exists() else process.exitcode
        for file, process in zip(files, started, strict=True)
    ]
    for file in files:
        file.unlink(missing_ok=True)
    return found


def _ready() -> None:
    """Starts what processes are forked from here in tests/, since it imports from where it was started.

    In a checkout that would be nnunet_mutual/ without trainers/ and planners/, which only an installation maps into it.
    """
    before = Path.cwd()
    os.chdir(Path(__file__).parent)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(before)


def _run(
    rank: int, size: int, folder: Path, environment: dict[str, str], work: Callable[..., Any], arguments: tuple
) -> None:
    os.environ.update(environment)  # of now, not of when the first process was started
    torch.set_num_threads(1)
    try:
        found = work(rank, distributed.FileStore(str(folder / "store"), size), *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    torch.save(found, folder / f"{rank}.pt")


@contextmanager
def joined(rank: int, store: Any, size: int = 2) -> Iterator[None]:
    """The process group of ``size`` processes, which none leaves before all are done."""
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    yield
    distributed.barrier()
    distributed.destroy_process_group()


def leaves(state: Any, skipped: tuple[str, ...] = (), place: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a state of any depth, by where they are."""
    if isinstance(state, torch.Tensor):
        return {place: state.nan_to_num()}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    deeper = [leaves(value, skipped, f"{place}.{key}") for key, value in pairs if key not in skipped]
    return {name: value for found in deeper for name, value in found.items()}
