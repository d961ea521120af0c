"""A trial whose arms and cases are known, and one run of it in a process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nnunet_mutual.datasets.next_step import Contents
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.plugin.compat import require_device
from nnunet_mutual.settings import merged_block
from nnunet_mutual.trial.arms import networks_of, words
from nnunet_mutual.trial.forecast import time_arm
from nnunet_mutual.trial.jobs import TIMING, Run, runs_of
from nnunet_mutual.trial.linked import require_unchanged
from nnunet_mutual.trial.protocol import RECORD, Options, TrialFolder
from nnunet_mutual.trial.raw_data import RawData
from nnunet_mutual.trial.scoring import measure, predict
from nnunet_mutual.trial.training import FOLD, Schedule, train
from nnunet_mutual.trial.training_data import Draw, contents, draw_raw, held_out, prepare


@dataclass(frozen=True)
class Trial:
    """A trial whose arms and cases are known.

    Attributes:
        folder: where it works.
        options: what it was asked.
        contents: what the arms learn from; of draws, of the first one.
        held_out: whom they are scored on.
    """

    folder: TrialFolder
    options: Options
    contents: Contents
    held_out: RawData

    @classmethod
    def of(cls, folder: TrialFolder, options: Options) -> Trial:
        """Opens a trial that was begun."""
        first = Draw.of(options, options.numbers[0], 0)
        return cls(folder, options, contents(draw_raw(folder, options, first)), held_out(folder))

    @property
    def block(self) -> dict[str, Any]:
        """Settings of the configuration that all arms train."""
        plans = read_plans(self.folder.path / "plans" / f"{self.options.plans}.json")
        return merged_block(plans, self.options.configuration)

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return runs_of(self.options)

    @property
    def why_open(self) -> list[str]:
        """Why no method may win, whatever the numbers say."""
        if self.contents.leaves_out and not self.options.hides and self.options.test is None:
            return [
                "the cases draw different labels, and a label is scored only where it is drawn, so that its errors in "
                "images of the other sources are not seen; for a conclusion, name fully drawn patients with --test "
                "DATASET"
            ]
        return []

    @property
    def patients(self) -> dict[str, str]:
        """Scored case -> patient."""
        return self.held_out.patients(list(self.held_out.training))

    def arms_in_words(self) -> dict[str, str]:
        """Says what each arm is."""
        return {arm: words(arm, self.contents) for arm in self.options.arms}

    def schedules(self) -> dict[str, Schedule]:
        """Returns how long each arm trains, as it was decided.

        Raises:
            MutualError: it was not decided yet.
        """
        file = self.folder.schedule_file
        if not file.is_file():
            raise MutualError(f"{file} does not exist; run the trial itself first, or with --list-jobs")
        return {arm: Schedule(**one) for arm, one in read_object(file).items()}


def do_job(path: Path, name: str) -> None:
    """Does one run; whoever starts it needs nothing but the folder.

    Args:
        path: folder of the trial.
        name: of the run, or of the measurement of an arm.

    Raises:
        MutualError: there is no such trial or run, or another process does it now.
    """
    if not (path / RECORD).is_file():
        raise MutualError(f"{path} holds no trial, so there is no run {name!r}; begin one with --list-jobs")
    folder, options, _ = TrialFolder.open(path, {})
    require_device(options.device)
    require_unchanged(folder.path)
    begun = Trial.of(folder, options)
    if name.startswith(TIMING):
        arm = name.removeprefix(TIMING)
        preprocessed = prepare(folder, options, Draw.of(options, options.numbers[0], 0))
        networks = networks_of(arm, begun.contents, begun.block)
        one = dict([next(iter(begun.held_out.training.items()))])
        time_arm(folder, options, preprocessed, arm, begun.contents, networks, replace(begun.held_out, training=one))
        return
    known = {run.name: run for run in begun.runs}
    if name not in known:
        raise MutualError(f"{path} has no run {name!r}{meant(name, known)}; --list-jobs lists them")
    with folder.locked(name, 20, f"another process does {name} in {path} now; wait for it"):
        if not folder.run_file(name).is_file():
            _do_run(begun, known[name])


def _do_run(begun: Trial, run: Run) -> None:
    """Trains, predicts and scores one run, and keeps its outcome."""
    folder, options = begun.folder, begun.options
    preprocessed = prepare(folder, options, Draw.of(options, run.labelled, run.seed))
    schedule = begun.schedules()[run.arm]
    trained = train(folder, options, preprocessed, run.arm, run.seed, schedule, run.ending)
    predictions = folder.path / "predictions" / run.name
    predict(trained.folder, FOLD, begun.held_out, predictions, torch.device(options.device), say_now)
    write_json(
        folder.run_file(run.name),
        {
            "benchmark": f"trial of {options.dataset}",
            "arm": run.arm,
            "seed": run.seed,
            "labelled": run.labelled,
            "words": words(run.arm, begun.contents),
            "total_updates": schedule.updates,
            "schedule": asdict(schedule),
            "minutes": round(trained.minutes, 3),
            "gigabytes": round(trained.gigabytes, 3),
            "device": options.device,
            "checkpoint": "last",
            "versions": {name: version(name) for name in ("nnunet_mutual", "nnunetv2", "torch", "numpy")},
            **measure(predictions, begun.held_out),
        },
    )


def say_now(text: str) -> None:
    """Prints, into a pipe, too, at once."""
    print(text, flush=True)
