"""Checkpoints that any nnU-Net can read: tensors and builtins only, written whole or not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_mutual.disk.shapes import Shape, require_shape
from nnunet_mutual.disk.trainings import CHECKPOINTS
from nnunet_mutual.disk.writing import written
from nnunet_mutual.engine.checkpoint_file import read_checkpoint
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import Settings, deep_merge, differences

STATE_KEY = "mutual_state"
STOCK_TRAINER = "nnUNetTrainer"
_SHAPE: Shape = {
    "network_weights": dict,
    "logging": dict,
    "init_args": dict,
    "current_epoch": int,
    STATE_KEY: {"trainer": str, "settings": dict},
}


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


def save_atomically(
    checkpoint: Mapping[str, Any],
    filename: str | os.PathLike[str],
    then: str = "continue with --c: what was saved before is untouched",
) -> None:
    """Writes a checkpoint under a temporary name and renames it, so that no half-written file takes its name.

    Args:
        checkpoint: its content.
        filename: the file.
        then: what to do once there is space, for the sentence.

    Raises:
        MutualError: the disk is full or the folder cannot be written; the previous file of that name is untouched.
    """
    path = Path(filename)
    try:
        with written(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(checkpoint), file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise MutualError(
            f"{path} could not be written ({_reason(error)}); free disk space or mend the permissions and {then}"
        ) from None


def _reason(error: BaseException) -> str:
    """What the operating system said, which torch reports in words of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return getattr(cause, "strerror", None) or str(error)


def load_own(filename: str | os.PathLike[str], device: torch.device, *, mapped: bool = False) -> dict[str, Any]:
    """Reads a checkpoint written by this package.

    Args:
        filename: of the checkpoint.
        device: where its tensors go.
        mapped: leave them on the disk until they are needed.

    Raises:
        MutualError: the file is damaged, or of another trainer.
    """
    checkpoint = read_checkpoint(filename, device, fix=_what_else(Path(filename)), mapped=mapped)
    if STATE_KEY not in checkpoint:
        raise MutualError(
            f"{filename} was not written by a trainer of this package (it has no {STATE_KEY}); it predicts as it is "
            "with nnU-Net's own commands; to train on, continue with the -tr that wrote it, or pass it as "
            "-pretrained_weights"
        )
    require_shape(checkpoint, _SHAPE, filename, _what_else(Path(filename)))
    return checkpoint


def _what_else(file: Path) -> str:
    """What to do where a checkpoint cannot be read: nnU-Net's ``--c`` takes the first of these that is there."""
    there = [name for name in CHECKPOINTS if name != file.name and file.with_name(name).is_file()]
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


def verify_author(state: Mapping[str, Any], trainer: str, settings: Settings, filename: str) -> None:
    """Verifies that a training may go on from a checkpoint.

    Args:
        state: its ``mutual_state``.
        trainer: name of the trainer that goes on.
        settings: in force now.
        filename: of the checkpoint, for the sentence.

    Raises:
        MutualError: it is of another trainer, the settings changed since, or entries are missing or of another shape.
    """
    if state["trainer"] != trainer:
        raise MutualError(
            f"{filename} was written by {state['trainer']}, not {trainer}; continue with -tr {state['trainer']}"
        )
    defaults = asdict(type(settings)()) | settings.earlier  # of settings that came after this training began
    changed = differences(deep_merge(defaults, state["settings"]), asdict(settings))
    if changed:
        raise MutualError(
            f"the settings, or their defaults, changed since this training started ({'; '.join(changed)}); put the old "
            'ones into "mutual" of its configuration in the plans, or train the new ones in a configuration of their '
            "own (nnunet_mutual plan --name)"
        )


@contextmanager
def whole(filename: str) -> Iterator[None]:
    """Says that a checkpoint lacks something; of what networks raise, only that weights do not fit is about it.

    Raises:
        MutualError: entries of the checkpoint are missing or of another shape.
    """
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
