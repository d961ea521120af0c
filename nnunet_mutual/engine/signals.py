"""Trainings that are told to stop: by a cluster (SIGTERM, SIGUSR1) or at the keyboard (SIGINT)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import sleep, time
from types import FrameType, TracebackType
from typing import Any

from nnunet_mutual.engine.parallel.ranks import Ranks
from nnunet_mutual.errors import MutualError

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT") if hasattr(signal, name))
NOTED = (*STOPPING, *(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name)))
_PATIENCE = 2.0  # seconds between the signals of one job's processes, at most
_SAME = 1.0  # seconds within which a second Ctrl-C is the first one, passed on by a launcher
_ORPHANED = 5.0  # seconds after which a loader's process asks again whether the training still runs
_DISK = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG")}


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C instead of dying within a step.

    Use as a context manager around the loop and the start of the loaders; ``received`` holds the last signal, of which
    one that stops is not replaced by one that does not. A second Ctrl-C stops at once. Clusters and terminals signal
    every process of a job: loader processes that are forked while it is active outlive that, so that the training can
    go on to the next place where it can be saved; they end with the training, or at the second SIGTERM.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._owner = os.getpid()
        self._told = False
        self._since = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in NOTED:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            self._note_in_loader(number)
            return
        if number == signal.SIGINT and self.received == number and time() - self._since > _SAME:
            raise KeyboardInterrupt
        self._since = time()
        if self.received not in STOPPING:
            self.received = number
        if number == signal.SIGINT:  # print() might be interrupted within itself
            os.write(2, b"\nCtrl-C: stopping as soon as the training is saved; once more stops at once, unsaved\n")

    def _note_in_loader(self, number: int) -> None:
        if number != signal.SIGTERM:
            return
        if self._told:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._told = True
        signal.signal(signal.SIGALRM, lambda *_: None if os.getppid() == self._owner else os._exit(1))
        signal.setitimer(signal.ITIMER_REAL, _ORPHANED, _ORPHANED)

    def take(self) -> int | None:
        """Returns the signal received since the last call."""
        number, self.received = self.received, None
        return number

    def come(self) -> bool:
        """Whether there is a signal, or one arrives within the time that the processes of a job get theirs in."""
        end = time() + _PATIENCE
        while self.received is None and time() < end:
            sleep(0.02)
        return self.received is not None


@dataclass(frozen=True)
class Stopping:
    """Obeys the signals that a training gets.

    Attributes:
        signals: that were noted.
        ranks: the processes of the training; what one of them got counts for all.
        say: prints to the log.
        save: writes the latest checkpoint and says where.
        close: ends the processes of the loaders, or they would be missed at the exit of the process, with tracebacks.
    """

    signals: StopSignals
    ranks: Ranks
    say: Callable[[str], None]
    save: Callable[[], str]
    close: Callable[[], None]

    def obey(self) -> None:
        """Saves a training when a signal was received on any process; SIGTERM and Ctrl-C also stop it."""
        number = self._taken()
        if number is not None:
            self._end(number, self.save())

    def leave(self) -> None:
        """Stops after the end of a training, before its validation, if that was asked for meanwhile."""
        number = self._taken()
        if number is not None:
            self._end(number, "the training is over and saved; validate it with --val")

    def draw(self, loader: Callable[[], Any], *, save: bool) -> dict:
        """Returns the next batch of a loader, also when its processes were killed by what the training has been told.

        Args:
            loader: gives the loader.
            save: save and stop at once where that is possible here; otherwise new processes load on to the next such
                place.
        """
        try:
            batch: dict = next(loader())
        except RuntimeError:  # nnU-Net's loader misses its processes
            if not self.signals.come():
                raise
            if save and self.ranks.size == 1:
                self.obey()
            batch = next(loader())
        return batch

    def _taken(self) -> int | None:
        """The signal that counts among those of all processes."""
        found = self.ranks.gather(self.signals.take())
        return next((number for number in NOTED if number in found), None)

    def _end(self, number: int, said: str) -> None:
        self.say(f"{signal.Signals(number).name} received: {said}")
        if number in STOPPING:
            self.close()
            raise SystemExit(128 + number)


@contextlib.contextmanager
def disk_in_one_sentence(place: str, *, beginning: bool = False) -> Iterator[None]:
    """Turns what a full or read-only disk raises into a sentence.

    Args:
        place: that is written to, where the error does not name the file.
        beginning: nothing but making the folder of the results is done here.

    Raises:
        MutualError: for such an OSError.
    """
    try:
        yield
    except OSError as error:
        if beginning:
            raise MutualError(
                f"{error.filename or place} cannot be written ({error.strerror or error}); set nnUNet_results to a "
                "folder on a disk with free space in which you may write"
            ) from None
        if error.errno not in _DISK:
            raise
        raise MutualError(
            f"{error.filename or place} cannot be written or read ({error.strerror}); free disk space or mend the "
            "permissions and repeat the command, with --c if the training had begun: what was saved is untouched"
        ) from None


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

    def due(self, epochs_done: int) -> bool:
        """Whether it is time after so many epochs."""
        passed = epochs_done - self._epoch, (time() - self._time) / 60
        return passed[0] >= self.epochs or passed[1] >= self.minutes
