"""When a training saves and when it stops."""

from __future__ import annotations

import os
import signal
import threading
from time import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_mutual.trainers.base import MutualTrainer


class StopSignals:
    """Notes SIGTERM and SIGUSR1, with which clusters announce the end of a job, instead of dying within a step.

    Use as a context manager around the loop and the start of the loaders; ``received`` holds the last signal. Clusters
    signal every process of a job: loader processes forked while it is active end at SIGTERM but outlive SIGUSR1, after
    which the training goes on.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._owner = os.getpid()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner:
            self.received = number
        elif number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def take(self) -> int | None:
        """Returns the signal received since the last call."""
        number, self.received = self.received, None
        return number


def obey(trainer: MutualTrainer, signals: StopSignals) -> None:
    """Saves a training when a signal was received on any process; SIGTERM also stops it."""
    number = max((n for n in trainer.ranks.gather(signals.take()) if n is not None), default=None)
    if number is None:
        return
    trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_latest.pth"))
    name, place = signal.Signals(number).name, f"epoch {trainer.current_epoch}, iteration {trainer.iteration}"
    trainer.print_to_log_file(f"{name} received: saved at {place}; continue with --c")
    if number == signal.SIGTERM:
        raise SystemExit(128 + number)


class SaveRhythm:
    """When ``checkpoint_latest`` is due.

    Args:
        epochs: at least every so many epochs ...
        minutes: ... or minutes.
    """

    def __init__(self, epochs: int, minutes: float):
        self.epochs = epochs
        self.minutes = minutes
        self.saved(0)

    def saved(self, epoch: int) -> None:
        """Notes a checkpoint after so many epochs."""
        self._time, self._epoch = time(), epoch

    def due(self, trainer: MutualTrainer) -> bool:
        """Whether it is time; the first process decides, since clocks differ and all take part in a checkpoint."""
        passed = trainer.epochs_done - self._epoch, (time() - self._time) / 60
        return trainer.ranks.first(passed[0] >= self.epochs or passed[1] >= self.minutes)
