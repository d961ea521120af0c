"""How long a trial takes, measured before it begins, and how long each arm may train."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nnunet_mutual.datasets.next_step import Contents
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import Settings, common_settings, read_settings
from nnunet_mutual.trial.arms import STOCK, labelled_between
from nnunet_mutual.trial.protocol import Options, TrialFolder
from nnunet_mutual.trial.raw_data import RawData
from nnunet_mutual.trial.scoring import measure, predict
from nnunet_mutual.trial.training import FOLD, Schedule, train

TRIED = Schedule(epochs=3, iterations=5, validations=1)  # long enough for compilation and warm epochs
_PLANNED = 8  # epochs of a measured training that is ended after those, before a method labels whole images
FEWEST_EPOCHS = 20  # of a shortened training, for nnU-Net's decay of the learning rate
_START = 20.0  # seconds that a process takes to import and to build


@dataclass(frozen=True)
class Timing:
    """What a step of an arm costs, measured.

    Attributes:
        seconds: of a training step of all its networks, the share of the online validation included.
        networks: that learn in it.
        prediction: seconds to predict a case.
        gigabytes: that it took.
        whole: seconds of a training beside its steps: of a method that labels whole images in between.
    """

    seconds: float
    networks: int
    prediction: float
    gigabytes: float
    whole: float = 0.0

    @classmethod
    def read(cls, file: Path) -> Timing:
        """Reads what :func:`time_arm` wrote."""
        return cls(**read_object(file))

    def minutes(self, schedule: Schedule) -> float:
        """Returns what a training takes."""
        return (schedule.epochs * schedule.iterations * self.seconds + self.whole) / 60


def time_arm(
    folder: TrialFolder, options: Options, preprocessed: Path, arm: str, contents: Contents, networks: int, one: RawData
) -> None:
    """Trains an arm for a few steps and predicts one case, and keeps how long that took; nothing else is kept.

    Args:
        folder: of the trial.
        options: of the trial.
        preprocessed: folder of the training data.
        arm: name of the trainer.
        contents: what it learns from.
        networks: that learn in each step.
        one: a held-out case.
    """
    results = folder.path / "nnUNet_results" / preprocessed.name
    for model in results.glob(f"{arm}__*_timing"):
        shutil.rmtree(model)
    planned = TRIED if arm == STOCK else replace(TRIED, epochs=_PLANNED)
    trained = train(folder, options, preprocessed, arm, 0, planned, "timing", last=TRIED.epochs)
    started = time.perf_counter()
    target = trained.folder / "timed"
    predict(trained.folder, FOLD, one, target, torch.device(options.device), lambda text: None)
    predicted = time.perf_counter() - started
    measure(target, one)  # what cannot be measured would be found after every training
    write_json(
        folder.timing_file(arm),
        {
            "seconds": round(trained.seconds_per_epoch / TRIED.iterations, 4),
            "networks": networks,
            "prediction": round(predicted, 2),
            "gigabytes": round(trained.gigabytes, 3),
            "whole": round(predicted * labelled_between(arm, contents), 1),
        },
    )
    shutil.rmtree(trained.folder)


def schedules(
    options: Options,
    block: Mapping[str, Any],
    timings: Mapping[str, Timing],
    *,
    runs: int,
    cases: int,
    slots: int,
) -> dict[str, Schedule]:
    """Returns how long each arm trains: as planned, or all shortened alike so that the budget suffices.

    Args:
        options: of the trial.
        block: ``"mutual"`` of the plans, which says how long a training is.
        timings: of each arm.
        runs: of each arm.
        cases: that each run predicts.
        slots: runs side by side.

    Raises:
        MutualError: the budget is too small for anything.
    """
    planned = read_settings(Settings, common_settings(block))
    updates = float(planned.num_epochs * planned.num_iterations_per_epoch)
    first = timings[options.arms[0]]

    def steps(arm: str, updates: float) -> float:
        one = timings[arm]
        if options.equal == "minutes":  # as long as the first arm takes for its updates
            return max(1.0, updates / first.networks * first.seconds - one.whole) / one.seconds
        return updates / one.networks

    if options.budget is not None:
        whole = runs * sum(steps(arm, updates) * timings[arm].seconds for arm in options.arms)
        other = runs * sum(_START + cases * one.prediction + one.whole for one in timings.values())
        share = min(1.0, (options.budget * slots - other) / whole)
        least = min(updates, float(FEWEST_EPOCHS * max(one.networks for one in timings.values())))
        if share * updates < least:
            raise MutualError(
                f"--budget {duration(options.budget)} is too small: {runs * len(options.arms)} runs need "
                f"{duration((other + whole * least / updates) / slots)} at least, just to begin; give more, fewer "
                "--seeds or fewer --arms"
            )
        updates *= share
    return {arm: _shape(planned, steps(arm, updates), timings[arm].networks) for arm in options.arms}


def _shape(planned: Settings, steps: float, networks: int) -> Schedule:
    """Divides steps into epochs of the planned length, shorter ones where there would be too few."""
    fewest = min(FEWEST_EPOCHS, planned.num_epochs)
    epochs = max(fewest, int(steps) // planned.num_iterations_per_epoch)
    iterations = max(1, round(steps / epochs))
    share = planned.num_val_iterations_per_epoch / planned.num_iterations_per_epoch
    return Schedule(epochs, iterations, max(1, round(share * iterations)), networks)


def total_seconds(
    schedules: Mapping[str, Schedule], timings: Mapping[str, Timing], runs: int, cases: int, slots: int
) -> float:
    """Returns how long all runs take, so many side by side."""
    each = [60 * timings[arm].minutes(one) + _START + cases * timings[arm].prediction for arm, one in schedules.items()]
    return runs * sum(each) / slots


def duration(seconds: float) -> str:
    """Says a time in words: '45 s', '12 min', '3 h 20 min', '2 days 4 h'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} days {hours % 24} h"


def describe(arms: Sequence[str], schedules: Mapping[str, Schedule], timings: Mapping[str, Timing]) -> list[list[str]]:
    """Returns rows of a table: arm, updates, minutes and memory of a run."""
    rows = [["arm", "updates", "minutes a run", "GB"]]
    for arm in arms:
        one, timing = schedules[arm], timings[arm]
        rows.append([arm, f"{one.updates:,}", f"{timing.minutes(one):.1f}", f"{timing.gigabytes:.1f}"])
    return rows
