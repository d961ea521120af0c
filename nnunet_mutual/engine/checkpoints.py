"""Checkpoints that any nnU-Net can read: tensors and builtins only, written whole or not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnunet_mutual.disk.checkpoint_file import read_checkpoint
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.errors import MutualError
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
    checkpoint = read_checkpoint(filename, device, fix=_what_else(Path(filename)))
    if STATE_KEY not in checkpoint:
        raise MutualError(
            f"{filename} was not written by a trainer of this package (it has no {STATE_KEY}); continue with the -tr "
            "that wrote it, or pass it as -pretrained_weights"
        )
    return checkpoint


def _what_else(file: Path) -> str:
    """What to do where a checkpoint cannot be read: nnU-Net's ``--c`` takes the first of these that is there."""
    order = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
    there = [name for name in order if name != file.name and file.with_name(name).is_file()]
    if not there:
        return "remove it and train anew, there is no other checkpoint"
    return f"remove it, then --c goes on from {there[0]} (-chk {there[0]} for other commands)"


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
        MutualError: it is of another trainer, the settings changed since, or entries are missing or of another shape.
    """
    with _whole(filename):
        _compare_author(trainer, checkpoint[STATE_KEY], filename)
    if not trainer.was_initialized:
        trainer.initialize()
    with _whole(filename):
        _restore(trainer, checkpoint)


@contextmanager
def _whole(filename: str) -> Iterator[None]:
    """Says that a checkpoint lacks something; of what networks raise, only that weights do not fit is about it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "state_dict" not in str(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise MutualError(
            f"{filename} lacks what this training needs, or was changed after it was written ({type(error).__name__}: "
            f"{reason}); {_what_else(Path(filename))}"
        ) from error


def _compare_author(trainer: MutualTrainer, state: Mapping[str, Any], filename: str) -> None:
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


def _restore(trainer: MutualTrainer, checkpoint: Mapping[str, Any]) -> None:
    state = checkpoint[STATE_KEY]
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
