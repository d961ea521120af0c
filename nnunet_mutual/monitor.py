"""Watching a training: every loss term by name, and a stop at the first one that is no number."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

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


class TermLog:
    """One JSON line per epoch with the mean of every term."""

    def __init__(self, file: Path):
        self.file = file

    def append(self, epoch: int, loss: float, terms: Mapping[str, float]) -> None:
        """Adds the line of an epoch."""
        with self.file.open("a") as stream:
            stream.write(json.dumps({"epoch": epoch, "loss": loss, "terms": dict(terms)}) + "\n")

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
