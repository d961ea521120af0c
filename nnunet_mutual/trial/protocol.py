"""What a trial is asked, fixed before its results: the folder that it works in and the options kept there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.shapes import Shape
from nnunet_mutual.disk.workplace import MARK, read_workplace
from nnunet_mutual.errors import MutualError

RECORD = "trial.json"
MAKER = "nnunet_mutual trial"
LOCKS = ".locks"
_SHAPE: Shape = {
    "options": {
        "dataset": str,
        "configuration": str,
        "plans": str,
        "fold": str,
        "test": (str, None),
        "arms": [str],
        "seeds": int,
        "keep": [str],
        "labelled": [int],
        "missing?": [str],
        "equal": str,
        "budget": (float, None),
        "device": str,
    }
}


@dataclass(frozen=True)
class Options:
    """What decides the results of a trial.

    Attributes:
        dataset: full name, of nnUNet_raw.
        configuration: that all arms train.
        plans: name of the plans.
        fold: whose validation patients are held out; "all" where ``test`` names others.
        test: full name of the dataset that arms are scored on; None: on the held-out patients.
        arms: names of trainers, from simple to elaborate; empty: those that fit the dataset.
        seeds: how often each arm is trained; where something is hidden, every seed has a draw of its own.
        keep: what is hidden, as ``nnunet_mutual simulate`` takes it.
        labelled: likewise, numbers of cases that keep their label map; several make a learning curve.
        missing: likewise, shares of cases without a channel.
        equal: what all arms have alike, "updates" or "minutes".
        budget: seconds that all runs may take together; None: no limit.
        device: where, "cuda", "cpu" or "mps".
    """

    dataset: str
    configuration: str
    plans: str = "nnUNetPlans"
    fold: str = "0"
    test: str | None = None
    arms: tuple[str, ...] = ()
    seeds: int = 3
    keep: tuple[str, ...] = ()
    labelled: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    equal: str = "updates"
    budget: float | None = None
    device: str = "cuda"

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Options:
        """Reads them from JSON or the command line; None stands for the default."""
        known: dict[str, Any] = {}
        for key, value in content.items():
            if value is not None:
                known[key] = tuple(value) if isinstance(value, list) else value
        return cls(**known)

    @property
    def hides(self) -> bool:
        """Whether something of the dataset is hidden from the trainings."""
        return bool(self.keep or self.labelled or self.missing)

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """Of labelled cases, one for each point of the learning curve; None: all."""
        return self.labelled or (None,)


@dataclass(frozen=True)
class TrialFolder:
    """A folder that holds one trial and nothing else."""

    path: Path

    @classmethod
    def open(cls, path: Path, asked: Mapping[str, Any]) -> tuple[TrialFolder, Options, bool]:
        """Opens a new folder, or that of a trial to go on with.

        Args:
            path: where.
            asked: options by name, None where the command line says nothing.

        Returns:
            The folder, the options, and whether the trial is new.

        Raises:
            MutualError: the folder is somebody else's, or of a trial with other options.
        """
        path = path.expanduser().resolve()
        record = read_workplace(path, RECORD, _SHAPE, maker=MAKER, option="-o")
        folder = cls(path)
        if record is None:
            return folder, Options.of(asked), True
        options = Options.of(record["options"])
        given = Options.of({**asdict(options), **{key: value for key, value in asked.items() if value is not None}})
        if not folder.schedule_file.is_file():  # as after a budget that was too small
            options = replace(options, budget=given.budget)
        for field in fields(Options):
            before, now = getattr(options, field.name), getattr(given, field.name)
            if before != now:
                raise MutualError(
                    f"{path} holds a trial with other options ({field.name}: {_said(before)}, now {_said(now)}); leave "
                    "the option out to go on with that trial, or give another folder with -o"
                )
        return folder, options, False

    def save(self, options: Options) -> None:
        """Records the options; from then on the folder is that of this trial."""
        for name in ("runs", "timing", "logs"):
            (self.path / name).mkdir(exist_ok=True)
        write_json(self.path / RECORD, {MARK: MAKER, "options": asdict(options)})

    def run_file(self, name: str) -> Path:
        """Returns where the outcome of a run is kept; it is there once the run is finished."""
        return self.path / "runs" / f"{name}.json"

    def timing_file(self, arm: str) -> Path:
        """Returns where the time of an arm's updates is kept."""
        return self.path / "timing" / f"{arm}.json"

    @property
    def schedule_file(self) -> Path:
        """Where the length of each arm's trainings is kept."""
        return self.path / "schedule.json"

    @contextmanager
    def locked(self, name: str, wait: float, busy: str) -> Iterator[None]:
        """Holds a lock, which a killed process gives back.

        Args:
            name: of the lock.
            wait: seconds; below 0: as long as it takes.
            busy: the sentence where another process holds it.

        Raises:
            MutualError: another process holds it.
        """
        folder = self.path / LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock", timeout=wait)
        try:
            lock.acquire()
        except Timeout:
            raise MutualError(busy) from None
        try:
            yield
        finally:
            lock.release()


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
