"""Watching a training: every loss term by name, and a stop at the first one that is no number."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from nnunetv2.utilities.collate_outputs import collate_outputs

from nnunet_mutual.datasets.splits import fold_problems
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.writing import written
from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin import compat

if TYPE_CHECKING:
    from nnunet_mutual.trainers.base import MutualTrainer

VERSIONS = ("nnunet_mutual", "nnunetv2", "torch", "numpy")
SKIPPED_STEPS_TOLERATED = 10
PLOT_SECONDS = 30


class FiniteGuard:
    """Stops a training whose loss or gradients are not finite, and names the term that began it.

    Args:
        names: of the values that :meth:`check` gets, terms before gradients.
        tolerated: consecutive steps that may be non-finite: 0 where the check comes before the optimiser step, more
            where a gradient scaler skips such steps by itself and lowers its scale.
    """

    def __init__(self, names: Sequence[str], tolerated: int):
        self.names = tuple(names)
        self.tolerated = tolerated
        self.skipped = 0

    @classmethod
    def of(cls, trainer: MutualTrainer) -> FiniteGuard:
        """Returns the guard of what a training step records."""
        gradients = [f"gradient of network {n}" for n in range(len(trainer.peers.networks))]
        heads = [] if trainer.peers.heads is None else ["gradient of the heads"]
        tolerated = 0 if trainer.grad_scaler is None else SKIPPED_STEPS_TOLERATED
        return cls([*trainer.term_names, *gradients, *heads, "sum of all terms"], tolerated)

    def check(self, values: Sequence[float], where: str) -> None:
        """Verifies one step.

        Args:
            values: as named.
            where: epoch, iteration and cases, for the sentence.

        Raises:
            MutualError: more consecutive steps than tolerated were non-finite.
        """
        wrong = [(name, value) for name, value in zip(self.names, values, strict=True) if not math.isfinite(value)]
        self.skipped = self.skipped + 1 if wrong else 0
        if self.skipped > self.tolerated:
            name, value = wrong[0]
            raise MutualError(
                f'the term "{name}" became {value} in {where}; the weights were not changed by it: look at these '
                "images, or lower initial_lr, and continue with --c"
            )


class ProgressPlot:
    """nnU-Net's progress.png. It takes seconds, an epoch of a small dataset less: twice a minute is enough."""

    def __init__(self) -> None:
        self._last = 0.0

    def draw(self, trainer: MutualTrainer) -> None:
        """Draws it if it is time for it, or the training has ended."""
        ended = trainer.epochs_done == trainer.num_epochs
        if trainer.local_rank == 0 and (ended or time() - self._last > PLOT_SECONDS):
            trainer.logger.plot_progress_png(trainer.output_folder)
            self._last = time()


class Forecast:
    """Says after the first steps how long a stage of a training will take and how much memory it needs.

    Args:
        steps: of the stage that are left; 20 of them are watched, the first 5 of which do not count (compilation).
    """

    WARM, WATCHED = 5, 20

    def __init__(self, steps: int):
        self.left = steps
        self._seen = 0
        self._since = 0.0

    def step(self, device: torch.device) -> str | None:
        """Counts a step; returns the sentence when it is time for it."""
        self._seen += 1
        if self._seen == self.WARM:
            self._since = time()
        if self._seen != self.WATCHED:
            return None
        each = (time() - self._since) / (self.WATCHED - self.WARM)
        minutes = each * (self.left - self.WATCHED) / 60
        long = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        return f"{each:.2f} s per training step: about {long} of them are left in this stage; {_peak(device)}"


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak GPU memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    try:
        import resource
    except ImportError:  # Windows
        return "on a CPU"
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return f"peak memory of the process {kibibytes / 2**20:.1f} GiB"


class TermLog:
    """One JSON line per epoch with the mean of every term and of its weight."""

    def __init__(self, file: Path):
        self.file = file

    def append(
        self,
        epoch: int,
        loss: float,
        terms: Mapping[str, float],
        diagnostics: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Adds the line of an epoch's training."""
        line: dict[str, object] = {"epoch": epoch, "loss": loss, "terms": dict(terms)}
        if weights:
            line["weights"] = dict(weights)
        self._write({**line, "diagnostics": dict(diagnostics)} if diagnostics else line)

    def append_validation(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Adds what else an epoch's validation found."""
        self._write({"epoch": epoch, "validation": dict(numbers)})

    def _write(self, line: Mapping[str, object]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def drop_from(self, epoch: int) -> None:
        """Removes the lines of epochs that a training is about to do, and lines that a crash cut off."""
        if self.file.exists():
            kept = [line for line in self.file.read_text().splitlines() if _epoch_of(line) < epoch]
            with written(self.file) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))


def say_start(trainer: MutualTrainer) -> None:
    """Prints the settings in force and what to know of the split, and saves the settings beside plans.json."""
    untested = compat.warn_untested()
    if untested:
        trainer.print_to_log_file(f"WARNING: {untested}")
    settings = {"trainer": type(trainer).__name__, **asdict(trainer.settings)}
    precision = trainer.autocast_dtype or "float32"
    versions = {name: version(name) for name in VERSIONS}
    trainer.print_to_log_file(f"Settings: {json.dumps(settings)}", f"Precision: {precision}")
    trainer.print_to_log_file(f"Versions: {json.dumps(versions)}")
    if trainer.local_rank == 0:
        write_json(Path(trainer.output_folder_base) / "mutual_settings.json", settings)
    if trainer.fold != "all":
        training, validation = trainer.do_split()
        for problem in fold_problems(trainer.table, {"train": training, "val": validation}, trainer.fold):
            trainer.print_to_log_file(f"WARNING: {problem.place}: {problem.text}")


def log_terms(trainer: MutualTrainer, outputs: list[dict]) -> None:
    """Logs the loss, every term by name and what the objectives report about an epoch, over all processes.

    Args:
        trainer: whose training steps returned ``outputs``.
        outputs: of each step, the loss, the values of all terms and, if known, their weights.
    """
    collated = collate_outputs(outputs)
    columns = np.column_stack([np.asarray(collated["loss"]).reshape(-1, 1), collated["terms"]])
    if trainer.is_ddp:  # each process has samples of its own
        columns = np.concatenate(trainer.ranks.gather(columns))
    # A step that the gradient scaler skipped has no loss to speak of.
    loss, *terms = (float(value) for value in np.nanmean(np.where(np.isfinite(columns), columns, np.nan), 0))
    trainer.logger.log("train_losses", loss, trainer.current_epoch)
    named = dict(zip(trainer.term_names, terms, strict=True))
    for logger in trainer.logger.loggers:
        for name, value in named.items():
            logger.log(f"term/{name}", value, trainer.current_epoch)
    diagnostics = {}
    for objective in trainer.objectives:
        numbers, warnings = objective.diagnose()
        diagnostics.update(numbers)
        for warning in warnings:
            trainer.print_to_log_file(f"WARNING: {warning}")
    if trainer.local_rank == 0:
        means = np.mean(collated.get("weights", np.empty((1, 0))), 0).tolist()
        pairs = zip(trainer.term_names, means, strict=False)
        weights = {name: round(value, 6) for name, value in pairs if not math.isnan(value)}
        trainer.term_log.append(trainer.current_epoch, loss, named, diagnostics, weights)
    trainer.print_to_log_file("terms", {name: round(value, 4) for name, value in named.items()})
    if (said := trainer.ranks.report()) is not None:
        trainer.print_to_log_file(said)


def say_epoch(trainer: MutualTrainer) -> None:
    """Prints what nnU-Net prints about an epoch, labels by name."""
    value = trainer.logger.get_value
    losses = round(value("train_losses", -1), 4), round(value("val_losses", -1), 4)
    trainer.print_to_log_file("train_loss", losses[0], "val_loss", losses[1])
    dice = zip(trainer.table.labels, value("dice_per_class_or_region", -1), strict=True)
    trainer.print_to_log_file("Pseudo dice", {name: round(d, 4) for name, d in dice})
    seconds = value("epoch_end_timestamps", -1) - value("epoch_start_timestamps", -1)
    trainer.print_to_log_file(f"Epoch time: {seconds:.2f} s")


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except ValueError:  # cut off
        return math.inf
