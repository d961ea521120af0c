"""Checkpoints that any nnU-Net can read: tensors and builtins only, written whole or not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.errors import MutualError
from nnunet_mutual.preprocessing.label_maps import compare_with_checkpoint
from nnunet_mutual.settings import deep_merge, differences

if TYPE_CHECKING:
    from nnunet_mutual.trainers.base import MutualTrainer

STATE_KEY = "mutual_state"
STOCK_TRAINER = "nnUNetTrainer"


def plain(value: Any) -> Any:
    """Converts NumPy scalars and arrays, paths and devices to tensors and builtins, recursively.

    ``torch.load(weights_only=True)`` refuses NumPy objects, and nnU-Net logs them.
    """
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (torch.device, os.PathLike)):
        return str(value)
    return value


def save_atomically(checkpoint: Mapping[str, Any], filename: str | os.PathLike[str]) -> None:
    """Writes a checkpoint under a temporary name and renames it, so that no half-written file takes its name.

    Raises:
        MutualError: the disk is full or the folder cannot be written; the previous file of that name is untouched.
    """
    path = Path(filename)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise MutualError(
            f"{path} could not be written ({error}); free disk space or mend the permissions and continue with --c: "
            "what was saved before is untouched"
        ) from error
    finally:  # gone by now unless something, Ctrl-C included, prevented the renaming
        temporary.unlink(missing_ok=True)


def load_own(filename: str | os.PathLike[str], device: torch.device) -> dict[str, Any]:
    """Reads a checkpoint written by this package.

    Raises:
        MutualError: the file is damaged, or of another trainer.
    """
    try:
        checkpoint = torch.load(filename, map_location=device, weights_only=True)
    except Exception as error:
        raise MutualError(
            f"{filename} is damaged or was not written by a trainer of this package ({str(error).splitlines()[0]}); "
            "continue with the -tr that wrote it, or remove it to start anew"
        ) from error
    if STATE_KEY not in checkpoint:
        raise MutualError(
            f"{filename} was not written by a trainer of this package (it has no {STATE_KEY}); continue with the -tr "
            "that wrote it, or pass it as -pretrained_weights"
        )
    return checkpoint


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns the state of every random generator that a training draws from, as tensors and builtins."""
    kind, words, position, has_gauss, gauss = np.random.get_state()
    version, internal, next_gauss = random.getstate()
    state: dict[str, Any] = {
        "numpy": [kind, np.asarray(words).tolist(), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), next_gauss],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Puts back what :func:`random_state` returned."""
    kind, words, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def pack(trainer: MutualTrainer) -> dict[str, Any] | None:
    """Collects a checkpoint: what stock nnU-Net predicts from, and under ``mutual_state`` all that ``--c`` needs.

    Returns:
        The checkpoint on rank 0, None on the others (all ranks must call this: each has random states of its own, or
        networks).
    """
    states = trainer.ranks.gather(random_state(trainer.device))
    peers = trainer.peers.state_dict()
    if trainer.local_rank != 0:
        return None
    return {
        "network_weights": unwrap(trainer.deployed_network).state_dict(),
        "optimizer_state": peers["optimizers"][0],
        "grad_scaler_state": peers["scaler"],
        "logging": plain(trainer.logger.get_checkpoint()),
        "_best_ema": plain(trainer._best_ema),
        "current_epoch": trainer.epochs_done,
        "init_args": plain(trainer.my_init_kwargs),
        "trainer_name": trainer.checkpoint_trainer,
        "inference_allowed_mirroring_axes": plain(trainer.inference_allowed_mirroring_axes),
        STATE_KEY: {
            **_author(trainer),
            "label_maps": None if trainer.labels is None else trainer.labels.began,
            "stage": trainer.stage,
            "deployed": trainer.deployed,
            "ranking": trainer.ranking.state_dict(),
            "peers": peers,
            "objectives": [plain(objective.state_dict()) for objective in trainer.objectives],
            "random": states,
            "iteration": trainer.iteration,
            "epoch_outputs": plain(trainer.epoch_outputs) if trainer.iteration else [],
            "skipped_steps": trainer.guard.skipped,
        },
    }


def pack_network(trainer: MutualTrainer, network: int) -> dict[str, Any]:
    """Collects what is needed to export one network, not to go on training."""
    return {
        "network_weights": unwrap(trainer.peers.evaluated[network]).state_dict(),
        "logging": plain(trainer.logger.get_checkpoint()),
        "_best_ema": plain(trainer.ranking.averages[network]),
        "current_epoch": trainer.current_epoch + 1,
        "init_args": plain(trainer.my_init_kwargs),
        "trainer_name": trainer.checkpoint_trainer,
        "inference_allowed_mirroring_axes": plain(trainer.inference_allowed_mirroring_axes),
        STATE_KEY: _author(trainer),
    }


def _author(trainer: MutualTrainer) -> dict[str, Any]:
    return {"trainer": type(trainer).__name__, "settings": asdict(trainer.settings)}


def unpack(trainer: MutualTrainer, checkpoint: Mapping[str, Any], filename: str) -> None:
    """Puts a checkpoint of :func:`pack` back into a trainer.

    Raises:
        MutualError: it is of another trainer, or the settings changed since.
    """
    state = checkpoint[STATE_KEY]
    name = type(trainer).__name__
    if state["trainer"] != name:
        raise MutualError(
            f"{filename} was written by {state['trainer']}, not {name}; continue with -tr {state['trainer']}"
        )
    defaults = asdict(trainer.settings_class())  # of settings that came after this training began
    changed = differences(deep_merge(defaults, state["settings"]), asdict(trainer.settings))
    if changed:
        raise MutualError(
            f"the settings in the plans changed since this training started ({'; '.join(changed)}); put them back, or "
            "train the new settings in a configuration of their own (nnunet_mutual plan --name)"
        )
    compare_with_checkpoint(trainer, checkpoint, state.get("label_maps"))
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.my_init_kwargs = checkpoint["init_args"]
    trainer.current_epoch = trainer.epochs_done = checkpoint["current_epoch"]
    trainer.rhythm.saved(trainer.current_epoch)
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
    trainer.restore_stage(state["stage"])
    trainer.deployed = state["deployed"]
    trainer.ranking.load_state_dict(state["ranking"])
    trainer.peers.load_state_dict(state["peers"])
    for objective, values in zip(trainer.objectives, state["objectives"], strict=True):
        objective.load_state_dict(values)
    trainer.iteration, trainer.guard.skipped = state["iteration"], state["skipped_steps"]
    steps = state["epoch_outputs"]
    trainer.epoch_outputs = [{key: np.asarray(value, np.float32) for key, value in step.items()} for step in steps]
    if len(state["random"]) > trainer.local_rank:
        trainer.resumed_random_state = state["random"][trainer.local_rank]
