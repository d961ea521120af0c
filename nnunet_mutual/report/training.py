"""A training as it lies in nnUNet_results: where its files are, what it was told, which cases it saw."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import cases_with_maps, read_dataset_json, unlabelled_cases
from nnunet_mutual.datasets.sync import table_changed
from nnunet_mutual.disk.files import natural, read_object
from nnunet_mutual.disk.host_files import read_plans, read_splits
from nnunet_mutual.disk.label_maps import TRUTH
from nnunet_mutual.disk.locate import DatasetFolders, locate
from nnunet_mutual.disk.shapes import require_shape
from nnunet_mutual.disk.trainings import FINAL, NamedTraining, fold_of
from nnunet_mutual.engine.acted import Acted
from nnunet_mutual.engine.checkpoints import STATE_KEY
from nnunet_mutual.engine.folds import require_recorded
from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.trainer_names import find_own
from nnunet_mutual.preprocessing.unlabelled import UNLABELLED, unlabelled_keys
from nnunet_mutual.report.logs import read_acted, read_newest
from nnunet_mutual.settings import differences

_NETWORK = re.compile(r"\bnetwork (\d+)\b")
STOCK_EPOCHS, STOCK_ITERATIONS = 1000, 250


@dataclass(frozen=True)
class Split:
    """Cases of a fold; ``known`` is false where its splits_final.json is not at hand; the lists are then empty."""

    training: list[str]
    validation: list[str]
    known: bool


@dataclass(frozen=True)
class Training:
    """One fold of a training.

    Attributes:
        base: its folder in nnUNet_results, without the fold.
        folders: of the dataset.
        trainer: name of the trainer, likewise plans, configuration and fold.
    """

    base: Path
    folders: DatasetFolders
    trainer: str
    plans: str
    configuration: str
    fold: str

    @property
    def folder(self) -> Path:
        """Folder of the fold."""
        return fold_of(self.base, self.fold)

    @property
    def options(self) -> str:
        """What our own commands take after their name."""
        return self._named.options

    @property
    def command(self) -> str:
        """The command that trains this fold."""
        return self._named.command

    @cached_property
    def how_on(self) -> str:
        """How an unfinished training goes on; where labels changed since it began, anew."""
        now = self.folders.preprocessed
        if now is not None and table_changed(self.base, now):
            return f"move its folder away, since labels or their table have changed, and train anew: {self.command}"
        return f"{self.command} --c"

    @property
    def pseudo_label_command(self) -> str:
        """The command that labels what the cases of this fold do not annotate."""
        return self._named.pseudo_label_command

    @property
    def _named(self) -> NamedTraining:
        return NamedTraining(self.folders.name, self.configuration, self.fold, self.trainer, self.plans)

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        """As it was when the training began."""
        return read_dataset_json(self.base)

    @cached_property
    def table(self) -> AnnotationTable:
        """Who drew what."""
        return AnnotationTable.from_dataset_json(self.dataset_json)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The plans."""
        return read_plans(self.base / "plans.json")

    @cached_property
    def settings(self) -> dict[str, Any] | None:
        """Settings in force; None of a trainer that is not of this package."""
        file = self.base / "mutual_settings.json"
        if not file.is_file():
            return None
        found = read_object(file)
        shape = {"num_epochs?": int, "num_iterations_per_epoch?": int, "trainer?": str}
        require_shape(found, shape, file, "delete it; the next start of the training writes it anew")
        return found

    @property
    def changed_settings(self) -> list[str]:
        """Settings that differ from the trainer's defaults, as ``name: default -> value``."""
        if self.settings is None:
            return []
        now = {name: value for name, value in self.settings.items() if name != "trainer"}
        with contextlib.suppress(MutualError):
            return differences(asdict(find_own(self.trainer).settings_class()), now)
        return [f"the defaults of {self.trainer} are not known here"]

    @property
    def epochs_planned(self) -> int:
        """Epochs of the whole training; of several networks that share updates, fewer than the settings ask for."""
        return int(read_newest(self.folder).get(STATE_KEY, {}).get("num_epochs", self.epochs_asked))

    @property
    def epochs_asked(self) -> int:
        """Epochs that the settings ask for."""
        return int((self.settings or {}).get("num_epochs", STOCK_EPOCHS))

    @property
    def iterations(self) -> int:
        """Steps in an epoch."""
        return int((self.settings or {}).get("num_iterations_per_epoch", STOCK_ITERATIONS))

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done."""
        return (self.folder / FINAL).is_file()

    @cached_property
    def split(self) -> Split:
        """The cases of the fold."""
        if self.fold == "all":
            keys = self._labelled_cases()
            return Split(keys, keys, True)
        file = self.folders.preprocessed / "splits_final.json" if self.folders.preprocessed else None
        splits = read_splits(file) if file is not None and file.is_file() else []
        if not self.fold.isdecimal() or int(self.fold) >= len(splits):
            return Split([], [], False)
        chosen: Mapping[str, list[str]] = splits[int(self.fold)]
        ending = self.dataset_json["file_ending"]
        validated = {file.name.removesuffix(ending) for file in self.folder.glob(f"validation*/[!.]*{ending}")}
        if not validated <= {*chosen["val"]}:  # other folds than those of this training
            return Split([], [], False)
        # Cases that came after the training are not in its table.
        training, validation = (
            sorted((key for key in chosen[part] if not self.table.declared or key in self.table.cases), key=natural)
            for part in ("train", "val")
        )
        return Split(training, validation, True)

    def _labelled_cases(self) -> list[str]:
        ending, place = self.dataset_json["file_ending"], self.references
        found = cases_with_maps(place, ending, self.table) if place else []
        return sorted(found or [key for key, case in self.table.cases.items() if case.annotated], key=natural)

    @property
    def references(self) -> Path | None:
        """Folder of the drawn label maps, if the dataset is at hand."""
        preprocessed, raw = self.folders.preprocessed, self.folders.raw
        if preprocessed is not None and (preprocessed / TRUTH).is_dir():
            return preprocessed / TRUTH
        return raw / "labelsTr" if raw is not None else None

    @cached_property
    def unlabelled(self) -> list[str]:
        """Unlabelled images that the fold may use, by what is preprocessed or else in imagesUn."""
        configuration = self.plan["configurations"].get(self.configuration, {})
        while "data_identifier" not in configuration and "inherits_from" in configuration:
            configuration = self.plan["configurations"][configuration["inherits_from"]]
        found: list[str] = []
        if self.folders.preprocessed is not None:
            folder = self.folders.preprocessed / UNLABELLED / str(configuration.get("data_identifier"))
            found = list(nnUNetDatasetBlosc2.get_identifiers(str(folder))) if folder.is_dir() else []
        if not found and self.folders.raw is not None:
            found = list(unlabelled_cases(self.folders.raw, self.dataset_json, ())[0])
        held_out = [] if self.fold == "all" else self.split.validation
        return unlabelled_keys(self.table, found, held_out)

    @cached_property
    def acted(self) -> Acted | None:
        """What of the method was at work, as the training says it; None if it does not."""
        return read_acted(self.folder)

    @property
    def by_group(self) -> bool:
        """Whether each network is that of a modality group."""
        return PLANS_KEY in self.plan

    def named(self, text: str) -> str:
        """Returns a text in which the networks of modality groups are called by their group."""
        groups = list(self.table.modality_groups) if self.by_group else []
        return _NETWORK.sub(lambda n: groups[int(n[1])] if int(n[1]) < len(groups) else n[0], text)


def open_training(dataset: str, configuration: str, *, trainer: str, plans: str, fold: str) -> Training:
    """Finds a training.

    Raises:
        MutualError: there is no such dataset, training or fold; says what there is.
    """
    folders = locate(dataset)
    base = NamedTraining(folders.name, configuration, fold, trainer, plans).find_fold().parent
    training = Training(base, folders, trainer, plans, configuration, fold)
    training.table  # noqa: B018 - a folder that is no training shall say so before anything is written
    training.plan  # noqa: B018
    require_recorded(read_newest(training.folder), base, fold)
    return training
