"""Several processes of a test, forked: they start at once, with everything imported."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

import torch
from torch import distributed


def in_processes(folder: Path, work: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """Runs ``work(rank, store, *arguments)`` in each process.

    Args:
        folder: an existing one, for the results and the file in which processes find each other.
        work: what to run.
        arguments: for it.
        size: number of processes.

    Returns:
        What each returned, or the exit status of those that ended without.
    """
    store, context = folder / "store", multiprocessing.get_context("fork")
    started = [context.Process(target=_run, args=(rank, size, folder, work, arguments)) for rank in range(size)]
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


def _run(rank: int, size: int, folder: Path, work: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    try:
        found = work(rank, distributed.FileStore(str(folder / "store"), size), *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    torch.save(found, folder / f"{rank}.pt")


def leaves(state: Any, skipped: tuple[str, ...] = (), place: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a state of any depth, by where they are."""
    if isinstance(state, torch.Tensor):
        return {place: state.nan_to_num()}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    deeper = [leaves(value, skipped, f"{place}.{key}") for key, value in pairs if key not in skipped]
    return {name: value for found in deeper for name, value in found.items()}
