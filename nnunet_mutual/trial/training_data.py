"""What arms learn from: datasets in the trial's own folders, one for each draw of what is hidden."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.datasets.examination import examine
from nnunet_mutual.datasets.next_step import Contents
from nnunet_mutual.datasets.simulate.command import SimulateOptions, simulate
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.locate import DatasetFolders, locate, plans_file
from nnunet_mutual.disk.workplace import own_roots
from nnunet_mutual.errors import MutualError
from nnunet_mutual.planning.plan_and_preprocess import preprocess_as_planned
from nnunet_mutual.settings import merged_block
from nnunet_mutual.trial import linked
from nnunet_mutual.trial.held_out import divide, require_shown, score_on, write_dataset
from nnunet_mutual.trial.protocol import Options, TrialFolder
from nnunet_mutual.trial.raw_data import Division, RawData

HELD_OUT = "held_out"
MOST_DRAWS = 998  # datasets of a trial beside that which it draws from, as nnU-Net numbers them
_READY = "trial_ready.json"


@dataclass(frozen=True)
class Draw:
    """One training dataset.

    Attributes:
        labelled: number of cases that keep their label map; None: all.
        seed: of the draw; None where nothing is hidden, so that all seeds learn from the same cases.
    """

    labelled: int | None
    seed: int | None

    @classmethod
    def of(cls, options: Options, labelled: int | None, seed: int) -> Draw:
        """Returns what a seed of the trial learns from."""
        return cls(labelled, seed if options.hides else None)

    def name(self, options: Options) -> str:
        """Returns the dataset's name in the trial's folders, where every number is used once."""
        if self.seed is None:
            return options.dataset
        number = options.numbers.index(self.labelled) * options.seeds + self.seed
        free = [n for n in range(1, 1000) if n != int(options.dataset[7:10])]
        many = "" if self.labelled is None else f"{self.labelled}Labelled"
        return f"Dataset{free[number]:03d}_{many}Draw{self.seed}"


def locate_planned(options: Options) -> tuple[DatasetFolders, dict[str, Any]]:
    """Finds the user's dataset and its plans, in which the configuration must be one that a trial trains.

    Raises:
        MutualError: the dataset is not there or not planned, or the configuration is none of these.
    """
    folders = locate(options.dataset, need_raw=True, need_preprocessed=True)
    assert folders.preprocessed is not None
    plans = read_plans(plans_file(folders.preprocessed, options.plans))
    merged_block(plans, options.configuration)
    if _inherited(plans, options.configuration, "previous_stage") is not None:
        raise MutualError(
            f"{options.configuration} is the second stage of a cascade, which a trial does not train; try 3d_lowres or "
            "3d_fullres"
        )
    return folders, plans


def link_data(folder: TrialFolder, options: Options) -> None:
    """Links training and held-out cases into the trial's folders; what is linked stays, whatever became of its source.

    Raises:
        MutualError: the dataset has errors, or cannot be divided as the options say.
    """
    raw, scored = folder.path / "nnUNet_raw" / options.dataset, folder.path / HELD_OUT
    if not scored.is_dir():  # which is written last
        folders, _ = locate_planned(options)
        data, division = _division(folders, options)
        if options.hides and Contents(data.table, list(data.training), False).partial:
            raise MutualError(
                f"{data.name} is not fully drawn, so hiding more of it leaves nothing to score the hidden part by; "
                "leave --keep, --labelled and --missing out, and name fully drawn patients with --test"
            )
        _keep_plans(folder, folders, options.plans)
        shutil.rmtree(raw.parent, ignore_errors=True)  # perhaps of another division, where a killed process had begun
        raw.parent.mkdir(parents=True)
        write_dataset(raw, data, division.training, division.unlabelled)
        write_dataset(scored, division.source, division.scored, {}, data.content["labels"])
    linked.record(folder.path, [raw / "imagesTr", raw / "imagesUn", scored / "imagesTr"])


def _division(folders: DatasetFolders, options: Options) -> tuple[RawData, Division]:
    """Reads the user's dataset, and says who of it, or of another one, is trained on and scored."""
    assert folders.preprocessed is not None
    data = RawData.read(folders)
    for path in (path for files in data.training.values() for path in files.images.values()):
        if not path.is_file():
            raise MutualError(f"{path} does not exist; put the image there, or correct dataset.json of {data.name}")
    if options.test is None:
        division = divide(data, folders.preprocessed, options.fold)
    else:
        test = locate(options.test, need_raw=True)
        _require_sound(test)
        division = score_on(data, RawData.read(test))
    require_shown(division, data.content["labels"])
    return data, division


def _keep_plans(folder: TrialFolder, folders: DatasetFolders, plans: str) -> None:
    assert folders.preprocessed is not None
    place = folder.path / "plans"
    place.mkdir(exist_ok=True)
    for name in (f"{plans}.json", "dataset_fingerprint.json"):
        if (folders.preprocessed / name).is_file():
            write_json(place / name, read_object(folders.preprocessed / name))


def _require_sound(folders: DatasetFolders) -> None:
    """Verifies the files of a dataset that no planning has looked at; found later, a fault would cost all trainings."""
    if errors := examine(folders, before_planning=True).errors:
        raise MutualError(
            f"--test {folders.name}: {errors[0].place}: {errors[0].text} (nnunet_mutual check {folders.name} lists all)"
        )


def draw_raw(folder: TrialFolder, options: Options, draw: Draw) -> RawData:
    """Returns the raw dataset of a draw, made unless it is there.

    Raises:
        MutualError: what is to be hidden does not fit the dataset.
    """
    with own_roots(folder.path):
        name = draw.name(options)
        if draw.seed is not None and not (folder.path / "nnUNet_raw" / name).is_dir():
            hidden = SimulateOptions(keep=options.keep, labelled=draw.labelled, missing=options.missing, seed=draw.seed)
            with folder_log(folder, f"data_{name}"):
                simulate(options.dataset, name, hidden)
        return RawData.read(locate(name, need_raw=True))


def prepare(folder: TrialFolder, options: Options, draw: Draw) -> Path:
    """Preprocesses a draw with the plans that all arms share, unless that is done.

    Returns:
        Its preprocessed folder.

    Raises:
        MutualError: it cannot be preprocessed.
    """
    name = draw.name(options)
    place = folder.path / "nnUNet_preprocessed" / name
    with folder.locked(f"data_{name}", -1, ""):
        if (place / _READY).is_file():
            return place
        raw = draw_raw(folder, options, draw)
        with own_roots(folder.path), folder_log(folder, f"preprocess_{name}"):
            place.mkdir(parents=True, exist_ok=True)
            plans = read_plans(folder.path / "plans" / f"{options.plans}.json")
            write_json(place / f"{options.plans}.json", {**plans, "dataset_name": name})
            fingerprint = folder.path / "plans" / "dataset_fingerprint.json"
            if fingerprint.is_file():
                shutil.copyfile(fingerprint, place / fingerprint.name)
            write_json(place / "dataset.json", raw.content)
            preprocess_as_planned(name, options.plans, configurations=[options.configuration], check=False)
            write_json(place / _READY, {"cases": len(raw.training), "unlabelled": len(raw.unlabelled)})
    return place


def contents(raw: RawData) -> Contents:
    """Returns what arms learn from."""
    return Contents(raw.table, list(raw.training), bool(raw.unlabelled))


def held_out(folder: TrialFolder) -> RawData:
    """Returns the cases that arms are scored on, as they were linked."""
    return RawData.read(DatasetFolders(HELD_OUT, folder.path / HELD_OUT, None))


@contextlib.contextmanager
def folder_log(folder: TrialFolder, name: str) -> Iterator[None]:
    """Keeps what other parts of the package print in a file of the trial."""
    log = folder.path / "logs" / f"{name}.log"
    with log.open("a", encoding="utf-8") as stream:  # progress bars go to stderr
        redirected = contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream)
        with redirected[0], redirected[1]:
            yield


def _inherited(plans: dict[str, Any], configuration: str | None, key: str) -> Any:
    while configuration is not None:
        entry = plans["configurations"][configuration]
        if key in entry:
            return entry[key]
        configuration = entry.get("inherits_from")
    return None
