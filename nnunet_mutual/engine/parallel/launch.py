"""Starts the processes of a peer-parallel training on one computer."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nnunet_mutual.errors import MutualError


def is_worker() -> bool:
    """Whether torchrun (or we) started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def launch(processes: int, dataset: str, configuration: str, fold: int | str, **options: Any) -> None:
    """Calls :func:`~nnunet_mutual.engine.parallel.worker.work` in several processes of this computer, as torchrun does.

    Args:
        processes: how many.
        dataset: of that function, like all that follows.
        configuration: likewise.
        fold: likewise.
        options: likewise.

    Raises:
        MutualError: a process failed, which ended the others, too.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # the training goes on from its checkpoint, with --c
        local_addr="localhost",
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it in one sentence
    try:
        elastic_launch(config, _started)(dataset, configuration, fold, options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise MutualError(
            f"process {rank} of the training ended first, with exit status {failure.exitcode}; what it said is above; "
            "once it is mended, continue with --c"
        ) from error
    except SignalException as signal:
        raise SystemExit(128 + int(signal.sigval)) from signal


def _started(dataset: str, configuration: str, fold: int | str, options: dict[str, Any]) -> None:
    from nnunet_mutual.engine.parallel.worker import work

    try:
        work(dataset, configuration, fold, **options)
    except MutualError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
