"""Watching a training: every loss term by name, and a stop at the first one that is no number."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import time

import torch

from nnunet_mutual.errors import MutualError


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
    """One JSON line per epoch with the mean of every term."""

    def __init__(self, file: Path):
        self.file = file

    def append(
        self, epoch: int, loss: float, terms: Mapping[str, float], diagnostics: Mapping[str, float] | None = None
    ) -> None:
        """Adds the line of an epoch."""
        line = {"epoch": epoch, "loss": loss, "terms": dict(terms)}
        if diagnostics:
            line["diagnostics"] = dict(diagnostics)
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def drop_from(self, epoch: int) -> None:
        """Removes the lines of epochs that a training is about to do, and lines that a crash cut off."""
        if self.file.exists():
            kept = [line for line in self.file.read_text().splitlines() if _epoch_of(line) < epoch]
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            os.replace(temporary, self.file)


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except ValueError:  # cut off
        return math.inf
