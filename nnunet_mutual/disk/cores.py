"""Many cases on all cores: in order, with progress, and ended by Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from nnunet_mutual.disk.workers import Workers
from nnunet_mutual.errors import MutualError

FEW = 32  # cases that are done before other processes have started
_TOGETHER = 4  # cases that a process gets at a time

Job = TypeVar("Job")
Result = TypeVar("Result")
_function: Callable[[Any], Any]


def each_case(function: Callable[[Job], Result], cases: Iterable[Job], *, doing: str) -> Iterator[Result]:
    """Yields what a function makes of each case, in their order, and shows progress.

    Args:
        function: of one case. Many are given to other processes, so it, a case and a result can be pickled; a result
            should be small, since voxels take as long to send as to read.
        cases: each is sent once; what all share belongs into the function, such as by ``functools.partial``.
        doing: in words, such as "reading cases".

    Raises:
        MutualError: what the function raises, or memory ran out.
    """
    jobs = list(cases)
    if len(jobs) < FEW or cores() == 1:
        yield from _shown(map(function, jobs), doing, len(jobs))
        return
    try:
        with Workers(cores(), _begin, function) as workers:
            yield from _shown(workers.map(_call, jobs, chunksize=_TOGETHER), doing, len(jobs))
    except BrokenProcessPool:
        raise MutualError(
            f"a process that was {doing} was ended by the system, as where memory runs out; close other programs, or "
            'use fewer processes: export nnUNet_def_n_proc=1 (a script of your own needs if __name__ == "__main__")'
        ) from None


def cores() -> int:
    """Returns how many processes work at a time: nnUNet_def_n_proc, else one for each core."""
    if given := os.environ.get("nnUNet_def_n_proc"):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shown(results: Iterable[Result], doing: str, number: int) -> Iterator[Result]:
    yield from tqdm(results, desc=doing, total=number, unit="case", file=sys.stderr, leave=False, disable=not number)


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _call(job: Any) -> Any:
    return _function(job)
