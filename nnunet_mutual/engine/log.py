"""Watching a training: every loss term by name, and a stop at the first one that is no number."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import time
from typing import Any

import torch

from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.writing import written
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin import compat
from nnunet_mutual.settings import Settings

VERSIONS = ("nnunet_mutual", "nnunetv2", "torch", "numpy")
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


@dataclass(frozen=True)
class EpochTerms:
    """What an epoch of training found, means over its steps and processes.

    Attributes:
        loss: sum of all weighted terms.
        terms: each by name.
        weights: of the terms.
        diagnostics: numbers that objectives report.
        warnings: likewise.
    """

    loss: float
    terms: dict[str, float]
    weights: dict[str, float]
    diagnostics: dict[str, float]
    warnings: list[str]


class ProgressPlot:
    """nnU-Net's progress.png. It takes seconds, an epoch of a small dataset less: twice a minute is enough."""

    def __init__(self) -> None:
        self._last = 0.0

    def draw(self, logger: Any, folder: str, *, ended: bool) -> None:
        """Draws it if it is time for it, or the training has ended.

        Args:
            logger: nnU-Net's.
            folder: of the fold.
            ended: whether this was the last epoch.
        """
        if ended or time() - self._last > PLOT_SECONDS:
            logger.plot_progress_png(folder)
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
            kept = [line for line in self.file.read_text(errors="replace").splitlines() if _epoch_of(line) < epoch]
            with written(self.file) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))


@dataclass(frozen=True)
class RunLog:
    """Where a training says what it does.

    Attributes:
        say: prints to nnU-Net's log file and the terminal.
        logger: nnU-Net's, of curves.
        terms: file of all terms.
        writes: whether this process writes; the others only print, which nnU-Net suppresses.
    """

    say: Callable[..., None]
    logger: Any
    terms: TermLog
    writes: bool

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self.say(f"WARNING: {text}")

    def acted(self, found: Acted) -> None:
        """Says what is trained, and warns if the method has nothing to do."""
        self.say(f"Trained: {found.trained}")
        if found.idle:
            self.warn(found.idle)

    def result(self, name: str, value: float) -> None:
        """Logs a final number."""
        self.logger.log_summary(name, value)

    def start(self, trainer: str, settings: Settings, precision: object) -> None:
        """Prints the settings in force, the precision and versions."""
        if untested := compat.warn_untested():
            self.warn(untested)
        self.say(f"Settings: {json.dumps(described(trainer, settings))}", f"Precision: {precision}")
        self.say(f"Versions: {json.dumps({name: version(name) for name in VERSIONS})}")

    def begin(self, trainer: str, settings: Settings, folder: Path, epoch: int) -> None:
        """Saves the settings in force beside plans.json, and drops what the log says of epochs that are now done again.

        Args:
            trainer: name of its class.
            settings: in force.
            folder: of the training.
            epoch: that is the next.
        """
        if self.writes:
            write_json(folder / "mutual_settings.json", described(trainer, settings))
            self.terms.drop_from(epoch)

    def training(self, epoch: int, found: EpochTerms) -> None:
        """Logs the loss, every term by name and what objectives report about an epoch."""
        self.logger.log("train_losses", found.loss, epoch)
        for logger in self.logger.loggers:
            for name, value in found.terms.items():
                logger.log(f"term/{name}", value, epoch)
        for warning in found.warnings:
            self.warn(warning)
        if self.writes:
            self.terms.append(epoch, found.loss, found.terms, found.diagnostics, found.weights)
        self.say("terms", {name: round(value, 4) for name, value in found.terms.items()})

    def validation(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Keeps what else an epoch's validation found."""
        if self.writes and numbers:
            self.terms.append_validation(epoch, numbers)

    def epoch(self, labels: Sequence[str]) -> None:
        """Prints what nnU-Net prints about an epoch, labels by name."""
        value = self.logger.get_value
        losses = round(value("train_losses", -1), 4), round(value("val_losses", -1), 4)
        self.say("train_loss", losses[0], "val_loss", losses[1])
        dice = zip(labels, value("dice_per_class_or_region", -1), strict=True)
        self.say("Pseudo dice", {name: round(d, 4) for name, d in dice})
        seconds = value("epoch_end_timestamps", -1) - value("epoch_start_timestamps", -1)
        self.say(f"Epoch time: {seconds:.2f} s")


def described(trainer: str, settings: Settings) -> dict[str, Any]:
    """Returns the settings in force as they are saved beside plans.json."""
    return {"trainer": trainer, **asdict(settings)}


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):  # cut off, or no line of ours
        return math.inf
