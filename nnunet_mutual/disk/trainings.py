"""Trainings in nnUNet_results: which folder, which folds and checkpoints."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results

from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.writing import place_of_processes, runs
from nnunet_mutual.errors import MutualError, meant

FINAL, LATEST, BEST = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"
_VALIDATED = "checkpoint.json"
CHECKPOINTS = (FINAL, LATEST, BEST)  # nnU-Net's --c takes the first of these that is there


@dataclass(frozen=True)
class NamedTraining:
    """One fold of a training, as the user names it.

    Attributes:
        dataset: full name.
        configuration: that is trained, likewise fold, trainer and plans.
    """

    dataset: str
    configuration: str
    fold: str
    trainer: str
    plans: str

    @property
    def words(self) -> str:
        """As train, pseudo_label and nnUNetv2_train take them; safe to copy, whoever wrote the names."""
        return _words(int(self.dataset[7:10]), self.configuration, self.fold, self.trainer, self.plans)

    @property
    def command(self) -> str:
        """The command that trains it."""
        return f"nnunet_mutual train {self.words}{device_option()}"

    @property
    def pseudo_label_command(self) -> str:
        """The command that labels what its cases do not annotate."""
        return f"nnunet_mutual pseudo_label {self.words}{device_option()}"

    @property
    def options(self) -> str:
        """As report and export take them."""
        return _words(int(self.dataset[7:10]), self.configuration, None, self.trainer, self.plans) + f" -f {self.fold}"

    @property
    def place(self) -> Path:
        """The folder of the fold, whether it exists or not.

        Raises:
            MutualError: nnUNet_results is not set.
        """
        name = training_name(self.trainer, self.plans, self.configuration)
        return fold_of(results_of(self.dataset) / name, self.fold)

    def find_model(self) -> Path:
        """Returns the folder of all folds.

        Raises:
            MutualError: nnUNet_results is not set, or there is no such training; says which there are.
        """
        base = results_of(self.dataset)
        wanted = training_name(self.trainer, self.plans, self.configuration)
        trained = sorted(f.name for f in base.glob("[!.]*__*") if f.is_dir())
        if wanted not in trained:
            there = ", ".join(trained) or "nothing yet"
            others = [name for name in trained if name.split("__")[::2] == [self.trainer, self.configuration]]
            plans = " or ".join(f"-p {name.split('__')[1]}" for name in others)
            fix = f"choose its plans with {plans}" if plans else f"train it with: {self.command}"
            raise MutualError(
                f"{base} has no training called {wanted}{meant(wanted, trained)}; trained there: {there}; {fix}"
            )
        return base / wanted

    def find_fold(self) -> Path:
        """Returns the folder of the fold.

        Raises:
            MutualError: as :meth:`find_model`, or there is no such fold; says which there are.
        """
        model = self.find_model()
        fold = fold_of(model, self.fold)
        if not fold.is_dir():
            there = ", ".join(folds_in(model)) or "none"
            raise MutualError(
                f"{fold} does not exist: the training has no fold {self.fold} (there: {there}); choose one of these "
                f"with -f, or train it with: {self.command}"
            )
        return fold

    def find_checkpoint(self, name: str) -> Path:
        """Returns the path of a checkpoint of the fold.

        Raises:
            MutualError: as :meth:`find_fold`, or there is no such checkpoint; says which there are.
        """
        file = self.find_fold() / name
        if not file.is_file():
            there = checkpoints_in(file.parent)
            instead = f", or give -chk one of {', '.join(there)}" if there else ""
            raise MutualError(f"{file} does not exist; finish the training with: {self.command} --c{instead}")
        return file


def train_command(
    number: int, configuration: str, trainer: str, *, plans: str = "nnUNetPlans", fold: int | str = 0
) -> str:
    """Returns the command that trains; with ``nnUNetv2_train`` for its first two words it is nnU-Net's own."""
    return f"nnunet_mutual train {_words(number, configuration, fold, trainer, plans)}{device_option()}"


@functools.cache
def device_option() -> str:
    """Returns what a command that computes needs on a machine without NVIDIA GPU, such as " -device cpu"."""
    import torch

    if torch.cuda.is_available():
        return ""
    return f" -device {'mps' if torch.backends.mps.is_available() else 'cpu'}"


def _words(number: int, configuration: str, fold: int | str | None, trainer: str, plans: str) -> str:
    words = [str(number), configuration, *([] if fold is None else [str(fold)]), "-tr", trainer]
    return shlex.join(words) + plans_option(plans)


def plans_option(plans: str) -> str:
    """Returns what a command needs for plans of another name than nnU-Net's own, such as " -p nnUNetPlans_50G"."""
    return "" if plans == "nnUNetPlans" else f" -p {shlex.quote(plans)}"


def training_name(trainer: str, plans: str, configuration: str) -> str:
    """Returns what nnU-Net calls the folder of a training."""
    return f"{trainer}__{plans}__{configuration}"


def parts_of_name(folder: Path) -> tuple[str, str, str]:
    """Returns trainer, plans and configuration of the folder of a training."""
    trainer, plans, configuration = folder.name.split("__")
    return trainer, plans, configuration


def results_of(dataset: str) -> Path:
    """Returns the folder of a dataset in nnUNet_results, which need not exist.

    Raises:
        MutualError: nnUNet_results is not set.
    """
    if not nnUNet_results.is_set():
        raise MutualError(
            'nnUNet_results is not set; set it as for nnU-Net: export nnUNet_results="/path/to/nnUNet_results"'
        )
    return Path(str(nnUNet_results)) / dataset


def fold_of(model: Path, fold: str) -> Path:
    """Returns the folder of a fold, "0" to "4" or "all", whether it exists or not."""
    return model / f"fold_{fold}"


def folds_in(model: Path) -> list[str]:
    """Returns the folds of a training."""
    return sorted(folder.name.removeprefix("fold_") for folder in model.glob("fold_*") if folder.is_dir())


def checkpoints_in(fold: Path) -> list[str]:
    """Returns the names of the checkpoints of a fold."""
    return sorted(file.name for file in fold.glob("checkpoint_*.pth"))


def progress_of(checkpoint: Mapping[str, Any]) -> list[float | None]:
    """Returns how many epochs the networks of a checkpoint were trained, and when that training began."""
    starts = checkpoint["logging"].get("epoch_start_timestamps") or [None]
    return [checkpoint["current_epoch"], starts[0]]


def begin_validation(folder: Path, checkpoint: str, progress: Sequence[float | None]) -> None:
    """Removes the results of an older validation, and notes which checkpoint's networks make the new one.

    Args:
        folder: of the validation.
        checkpoint: file name.
        progress: of its networks, see :func:`progress_of`: a checkpoint of that name may be replaced.

    Raises:
        MutualError: another process is at it; nothing is removed then.
    """
    note, place, this = folder / _VALIDATED, place_of_processes(), os.getpid()
    begun = read_object(note) if note.is_file() and not (folder / "summary.json").is_file() else {}
    host, number = begun.get("process", (None, this))
    if host == place and number != this and runs(number):
        raise MutualError(
            f"{folder} is being written by another command (process {number} on {host}); wait for it, or remove "
            f"{note} if it no longer runs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("summary.json", "metrics.csv"):
        (folder / name).unlink(missing_ok=True)
    write_json(note, {"checkpoint": checkpoint, "progress": list(progress), "process": [place, this]})


def validated_checkpoint(folder: Path) -> str | None:
    """Returns the checkpoint of a validation; None where that is not known, as of trainings of 0.1.0."""
    file = folder / _VALIDATED
    return str(read_object(file).get("checkpoint")) if file.is_file() else None


def is_validated(fold: Path) -> bool:
    """Whether validations of a fold were begun and all of them, of modality groups several, have results."""
    begun = [file.parent for file in fold.glob(f"validation*/{_VALIDATED}")]  # 0.1.0 did not note that
    begun = begun or [file.parent for file in fold.glob("validation*/summary.json") if "_full" not in file.parent.name]
    return bool(begun) and all((folder / "summary.json").is_file() for folder in begun)


def validated_progress(folder: Path) -> list[float | None] | None:
    """Returns the progress that :func:`begin_validation` noted; None where it is not known."""
    file = folder / _VALIDATED
    found = read_object(file).get("progress") if file.is_file() else None
    return found if isinstance(found, list) else None


def set_aside(fold: Path) -> list[Path]:
    """Gives other names to checkpoints and results of a training where another one begins in its folder.

    nnU-Net's ``--c`` would take the old one for that which is to go on, and reports its results for the new one's.

    Args:
        fold: its folder.

    Returns:
        The new places.
    """
    moved = []
    for file in sorted([*fold.glob("checkpoint_*.pth"), *fold.glob("validation*/summary.json")]):
        number = next(n for n in itertools.count(1) if not file.with_name(f"{file.name}.bak-{n}").exists())
        moved.append(file.rename(file.with_name(f"{file.name}.bak-{number}")))
    return moved


@contextlib.contextmanager
def removed_unless_begun(fold: Path) -> Iterator[None]:
    """Removes the folders of a training that ends with an error before anything but its log was written.

    Args:
        fold: its folder, ``nnUNet_results/<dataset>/<training>/fold_<n>``.
    """
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):  # not empty, or read-only
            files = list(fold.iterdir())
            if len(files) == 1 and files[0].name.startswith("training_log_"):  # several are of earlier ones, too
                files[0].unlink()
            for folder in (fold, *fold.parents[:2]):
                folder.rmdir()
        raise
