"""One training of a trial: from the plans and a schedule to its last checkpoint, through any number of kills."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_mutual.datasets.raw import read_dataset_json
from nnunet_mutual.disk.files import read_json, read_object, write_json
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.trainings import FINAL, LATEST, fold_of, training_name
from nnunet_mutual.disk.workplace import own_roots
from nnunet_mutual.engine.scheduled_stock import ScheduledStock
from nnunet_mutual.plugin.trainer_names import find_trainer
from nnunet_mutual.settings import merged_block
from nnunet_mutual.trial.arms import STOCK, own_block
from nnunet_mutual.trial.protocol import Options, TrialFolder

FOLD = "all"  # of the trial's own dataset, which holds nobody that is scored


class nnUNetTrainer(ScheduledStock):
    """Stock nnU-Net with the trial's schedule; its folders and checkpoints carry stock's name, so they are stock's."""


@dataclass(frozen=True)
class Schedule:
    """How long an arm trains.

    Attributes:
        epochs: of nnU-Net.
        iterations: training steps in an epoch.
        validations: of the online validation after it.
        networks: that learn in each step.
    """

    epochs: int
    iterations: int
    validations: int
    networks: int = 1

    @property
    def updates(self) -> int:
        """Of all networks together."""
        return self.epochs * self.iterations * self.networks


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: of the model, for all folds.
        minutes: that its updates and what belongs to them took.
        gigabytes: of the GPU at most, on a CPU of the process.
        seconds_per_epoch: of its epochs, the first one left out.
    """

    folder: Path
    minutes: float
    gigabytes: float
    seconds_per_epoch: float


def train(
    folder: TrialFolder,
    options: Options,
    preprocessed: Path,
    arm: str,
    seed: int,
    schedule: Schedule,
    ending: str,
    *,
    last: int | None = None,
) -> Trained:
    """Trains an arm, or goes on with what a killed process left.

    Args:
        folder: of the trial.
        options: of the trial.
        preprocessed: folder of the training data.
        arm: name of the trainer.
        seed: of weights and batches.
        schedule: how long.
        ending: of the configuration's name, so that every training has a folder of its own.
        last: number of epochs after which a trainer of this package ends all the same, to measure it.

    Raises:
        MutualError: it cannot train, with the reason.
    """
    plans = read_plans(preprocessed / f"{options.plans}.json")
    name = f"{options.configuration}_{ending}"
    block = own_block(arm, merged_block(plans, options.configuration), _settings(schedule, seed, options.device))
    plans["configurations"][name] = {"inherits_from": options.configuration, "mutual": block}
    with own_roots(folder.path):
        model = folder.path / "nnUNet_results" / preprocessed.name / training_name(arm, options.plans, name)
        place = fold_of(model, FOLD)
        if options.device == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or multiprocessing.cpu_count()))
        latest, final = place / LATEST, place / FINAL
        plans["continue_training"] = latest.is_file()
        trainer = _class(arm)(plans, name, FOLD, read_dataset_json(preprocessed), torch.device(options.device))
        if not final.is_file():
            if latest.is_file():
                _note_pause(place, latest.stat().st_mtime)
                trainer.load_checkpoint(str(latest))
            if last is not None:
                _end_after(trainer, last)
            trainer.run_training()
            write_json(place / "memory.json", round(_gigabytes(trainer.device), 3))
        log = torch.load(final, map_location="cpu", weights_only=False)["logging"]  # this trial wrote it
    starts, ends = log["epoch_start_timestamps"], log["epoch_end_timestamps"]
    epochs = sorted(end - start for start, end in zip(starts[1:] or starts, ends[1:] or ends, strict=True))
    return Trained(
        model,
        (ends[-1] - starts[0] - sum(_pauses(place).values())) / 60,
        float(read_json(place / "memory.json")) if (place / "memory.json").is_file() else _gigabytes(trainer.device),
        float(epochs[len(epochs) // 2]),
    )


def _end_after(trainer: Any, epochs: int) -> None:
    """Lets the loop of this package end after so many epochs, whatever a method had still planned."""
    original = trainer.on_epoch_end

    def on_epoch_end() -> None:
        original()
        if trainer.current_epoch == epochs:
            trainer.num_epochs = epochs

    trainer.on_epoch_end = on_epoch_end


def _class(arm: str) -> Any:
    return nnUNetTrainer if arm == STOCK else find_trainer(arm)


def _settings(schedule: Schedule, seed: int, device: str) -> dict[str, Any]:
    """The part of the settings that is the same in all arms."""
    return {
        "num_epochs": schedule.epochs,
        "num_iterations_per_epoch": schedule.iterations,
        "num_val_iterations_per_epoch": schedule.validations,
        "amp": "auto" if device == "cuda" else "off",  # as stock nnU-Net
        "seed": seed,
    }


def _note_pause(place: Path, saved: float) -> None:
    """Time between the last checkpoint and the process that goes on from it is no time of the training.

    Where another process had gone on from the same checkpoint, and ended before the next one, it is one pause.
    """
    write_json(place / "pauses.json", {**_pauses(place), f"{saved:.3f}": round(time.time() - saved, 1)})


def _pauses(place: Path) -> dict[str, float]:
    """Returns seconds by the time of the checkpoint before them."""
    file = place / "pauses.json"
    return {saved: float(seconds) for saved, seconds in read_object(file).items()} if file.is_file() else {}


def _gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
