"""A training whose networks run in processes of their own: what each process does from beginning to end.

The one place of the library that holds a whole trainer: it drives one, as nnU-Net's own command does.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from torch.backends import cudnn
from torch.distributed.rendezvous import rendezvous

from nnunet_mutual.engine import networks as building
from nnunet_mutual.engine.parallel.peer_ranks import TIMEOUT, Exchange, PeerRanks
from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.find import is_built_on_ours


def work(
    dataset: str,
    configuration: str,
    fold: int | str,
    *,
    trainer: str,
    plans: str,
    resume: bool,
    device: str,
    exchange: Exchange,
) -> None:
    """Trains this process's networks to the end and predicts its share of the validation cases.

    Args:
        dataset: ID or name.
        configuration: of the plans.
        fold: a number or "all".
        trainer: a trainer of several networks.
        plans: identifier.
        resume: go on from the last checkpoint, of this or of an ordinary training.
        device: "cuda" or "cpu".
        exchange: see :class:`~nnunet_mutual.engine.parallel.peer_ranks.PeerRanks`.

    Raises:
        MutualError: the trainer has no networks to distribute, or another process was lost.
    """
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if rank:
        os.environ["nnUNet_wandb_enabled"] = "0"  # one run, not one of each process
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the first process speaks for all, errors go to stderr
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // _here(size)) if device == "cpu" else 1)
    made = get_trainer_from_args(dataset, configuration, fold, trainer, plans, resume, torch.device(device))
    if not is_built_on_ours(type(made)):
        raise MutualError(f"{trainer} is no trainer of nnunet_mutual; train it with nnUNetv2_train")
    share_networks(made, store, rank, size, exchange=exchange)
    maybe_load_checkpoint(made, resume, False)
    if not made.was_initialized:
        made.initialize()
    _require_networks(made)
    cudnn.benchmark = device == "cuda"
    made.print_to_log_file(_describe(made))
    try:
        made.run_training()
        made.perform_actual_validation()
    finally:
        made.close_loaders()


def share_networks(
    trainer: Any,
    store: torch.distributed.Store,
    rank: int,
    size: int,
    *,
    exchange: Exchange = "float32",
    timeout: timedelta = TIMEOUT,
) -> None:
    """Lets a trainer that was just made be one of several processes that share its networks.

    Args:
        trainer: not initialised yet. It was made without a process group, which nnU-Net would take for DDP.
        store: where processes find each other.
        rank: of this process.
        size: number of processes.
        exchange: see :class:`~nnunet_mutual.engine.parallel.peer_ranks.PeerRanks`.
        timeout: likewise.
    """
    if trainer.device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", rank))
        trainer.device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(trainer.device)
    trainer.ranks = PeerRanks(store, rank, size, trainer.device, exchange=exchange, timeout=timeout)
    trainer.local_rank = rank  # the first one writes
    log = trainer.ranks.first(trainer.log_file)
    if trainer.log_file != log:
        Path(trainer.log_file).unlink(missing_ok=True)
    building.seed(
        trainer.ranks.first(secrets.randbits(31))
    )  # the same weights everywhere, unless the settings say which


def _require_networks(trainer: Any) -> None:
    number, size = trainer.most_networks, trainer.ranks.size
    if number > 1 and size <= number:
        return
    if trainer.ranks.rank:
        raise SystemExit(2)  # the first process says why
    name = type(trainer).__name__
    if number == 1:
        raise MutualError(
            f"{name} trains one network with these data and settings, so there is nothing to distribute; train it "
            "without --peer-parallel, or divide its batches with nnUNetv2_train -num_gpus"
        )
    raise MutualError(f"{name} trains {number} networks here, for {size} processes; give --processes {number}")


def _describe(trainer: Any) -> str:
    ranks = trainer.ranks
    places = ranks.gather(f"{platform.node()} {trainer.device}")
    lines = [f"network {n}: process {n % ranks.size} ({places[n % ranks.size]})" for n in range(trainer.most_networks)]
    return "Peer-parallel: " + ", ".join(lines)


def _here(size: int) -> int:
    """Number of processes on this computer."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size))
