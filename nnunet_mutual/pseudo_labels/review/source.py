"""The pseudo labels of a training or of other tools' masks, as masks in the geometry of the raw images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision, read_decisions
from nnunet_mutual.batches.pseudo import CSV, IDENTITY, PseudoStore
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases
from nnunet_mutual.datasets.sync import raw_and_preprocessed_differ
from nnunet_mutual.disk.case_files import load_case
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.disk.locate import DatasetFolders, locate
from nnunet_mutual.disk.shapes import Shape, require_shape
from nnunet_mutual.disk.trainings import NamedTraining
from nnunet_mutual.errors import MutualError, shown
from nnunet_mutual.preprocessing.unlabelled import UNLABELLED, folder_of
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.geometry import in_image_space
from nnunet_mutual.pseudo_labels.masks.make import STORE
from nnunet_mutual.pseudo_labels.review.rules import rules_for

_ANEW = "make the pseudo labels again: nnunet_mutual pseudo_label"
_MADE_BY: Shape = {
    "labels": dict,
    "settings": {"low?": float, "high?": float, "min_agreement?": float, "max_z?": float, "min_component?": float},
}


@dataclass(frozen=True)
class ReviewSource:
    """What a review is made of.

    Attributes:
        training: whose pseudo labels they are; None of masks of other tools.
        folders: of the dataset.
        content: of the raw dataset.json.
        table: its annotation table.
        files: images and label map of each training case.
        store: the pseudo labels.
        decisions: about labels that are still not annotated.
        settings: the filter of the decisions.
        reader: nnU-Net's, of the plans or of the dataset.
        plans: of the training.
        tools: whose masks they are, without a training.
    """

    training: NamedTraining | None
    folders: DatasetFolders
    content: Mapping[str, Any]
    table: AnnotationTable
    files: Mapping[str, CaseFiles]
    store: PseudoStore
    decisions: list[Decision]
    settings: FilterSettings
    reader: BaseReaderWriter
    plans: PlansManager | None = None
    tools: str = ""

    @property
    def maker(self) -> str:
        """Who made them, in words."""
        one = self.training
        if one is None:
            return f"masks of {self.tools}"
        return f"{one.trainer}, {one.configuration}, fold {one.fold}, plans {one.plans}"

    def mask(self, case: Case, label: str, drawn: np.ndarray) -> np.ndarray:
        """Returns the candidate of a label.

        Args:
            case: of which.
            label: not annotated in it.
            drawn: (*spatial) integers of the raw label map.

        Returns:
            (*spatial) bool in the grid of the image, nowhere against what was drawn.

        Raises:
            MutualError: there is no candidate, or the preprocessed case is missing.
        """
        candidates = self.store.candidates(case.key)
        if candidates is None:
            raise MutualError(
                f"{self.store.folder} has no candidates of case {case.key}, so an older version wrote it; delete "
                "that folder and make the pseudo labels again: nnunet_mutual pseudo_label"
            )
        values = self._in_image_space(case.key, candidates)
        if values.shape != drawn.shape:
            raise MutualError(
                f"the label map of case {case.key} has the shape {drawn.shape}, its mask {values.shape}: one was "
                "changed since; make the pseudo labels again: nnunet_mutual pseudo_label"
            )
        own = self.table.values[label]
        mask = np.isin(values, own)
        for y, rule in rules_for(self.table, case, label).items():
            if rule.inside is None:  # rounded by the way from the preprocessed grid
                mask &= drawn != y
            elif rule.outside in own:  # a drawn part of a region
                mask |= drawn == y
        return mask

    def _in_image_space(self, key: str, candidates: np.ndarray) -> np.ndarray:
        """Masks of other tools are stored on the grid of the image."""
        if self.training is None or self.plans is None:
            return candidates[0]
        properties = self._properties(self.training, self.plans, key, candidates.shape)
        return in_image_space(self.plans, candidates[0], properties)

    def _properties(
        self, training: NamedTraining, plans: PlansManager, key: str, shape: tuple[int, ...]
    ) -> dict[str, Any]:
        assert self.folders.preprocessed is not None
        identifier = plans.get_configuration(training.configuration).data_identifier
        preprocessed = self.folders.preprocessed
        unlabelled = self.files[key].unlabelled
        folder = str(folder_of(preprocessed, UNLABELLED, identifier) if unlabelled else preprocessed / identifier)
        try:
            _, seg, _, properties = load_case(infer_dataset_class(folder)(folder, [key]), key)
        except (OSError, RuntimeError, AssertionError):
            raise MutualError(
                f"case {key} is not in {folder}; run nnUNetv2_preprocess -d {self.folders.number} -plans_name "
                f"{training.plans} -c {training.configuration}"
            ) from None
        if tuple(seg.shape) != shape:
            raise MutualError(
                f"the images in {folder} were preprocessed anew after {self.store.folder} was made (case {key} had the "
                f"shape {shape[1:]}, now {tuple(seg.shape[1:])}); make the pseudo labels again: nnunet_mutual "
                "pseudo_label"
            )
        return properties


def open_source(training: NamedTraining, checkpoint: str | None) -> ReviewSource:
    """Opens the pseudo labels that a training, or ``nnunet_mutual pseudo_label``, has made.

    Args:
        training: of what; ``dataset`` may be an ID here.
        checkpoint: that pseudo_label was asked for; None takes those of the training itself, or the only ones.

    Raises:
        MutualError: there are none, or they do not fit the dataset any more.
    """
    folders = locate(training.dataset, need_raw=True, need_preprocessed=True)
    training = replace(training, dataset=folders.name)
    difference = raw_and_preprocessed_differ(folders.name)
    if difference:
        raise MutualError(difference)
    folder, store = _store(training, checkpoint)
    plans = PlansManager(read_plans(folder / "plans.json"))
    return _open(folders, store, training=training, plans=plans)


def open_masks(dataset: str) -> ReviewSource:
    """Opens the pseudo labels that ``nnunet_mutual pseudo_label --from`` has made of masks of other tools.

    Args:
        dataset: ID or name.

    Raises:
        MutualError: there are none, or they do not fit the dataset any more.
    """
    folders = locate(dataset, need_raw=True)
    assert folders.raw is not None
    store = PseudoStore(folders.raw / STORE)
    if not (store.folder / CSV).is_file():
        raise MutualError(
            f"{folders.name} has no pseudo labels of other tools; make them with nnunet_mutual pseudo_label "
            f"{folders.number} --from FOLDER, or name a training (CONFIGURATION FOLD -tr TRAINER)"
        )
    made_by = read_object(store.folder / IDENTITY)
    require_shape(made_by, {"tools": [str]}, store.folder / IDENTITY, _ANEW)
    return _open(folders, store, tools=" and ".join(dict.fromkeys(made_by["tools"])))


def _open(
    folders: DatasetFolders,
    store: PseudoStore,
    *,
    training: NamedTraining | None = None,
    plans: PlansManager | None = None,
    tools: str = "",
) -> ReviewSource:
    assert folders.raw is not None
    content = read_dataset_json(folders.raw)
    table = AnnotationTable.from_dataset_json(content)
    made_by = read_object(store.folder / IDENTITY)
    require_shape(made_by, _MADE_BY, store.folder / IDENTITY, _ANEW)
    if made_by["labels"] != content["labels"]:
        raise MutualError(
            f'"labels" of {folders.raw / "dataset.json"} are no longer those of {store.folder}; make the pseudo labels '
            "again: nnunet_mutual pseudo_label"
        )
    decisions = read_decisions(store.folder / CSV)
    if strange := next((d.label for d in decisions if d.label not in table.labels), None):
        raise MutualError(
            f"{store.folder / CSV} names the unknown label {shown(strange)}, so it was changed; make the pseudo labels "
            "again: nnunet_mutual pseudo_label"
        )
    known = FilterSettings.__dataclass_fields__
    files, _ = training_cases(folders.raw, content)
    if plans is not None:
        reader = plans.image_reader_writer_class()
    else:
        reader = reader_for(content, [path for case in files.values() for path in case.images.values()])
    return ReviewSource(
        training,
        folders,
        content,
        table,
        files,
        store,
        [d for d in decisions if d.case in files and d.label not in table.case(d.case).annotated],
        FilterSettings(**{name: value for name, value in made_by["settings"].items() if name in known}),
        reader,
        plans,
        tools,
    )


def _store(training: NamedTraining, checkpoint: str | None) -> tuple[Path, PseudoStore]:
    """Returns the folder of the training and the pseudo labels in it."""
    fold = training.find_fold()
    found = {path.parent.name: path.parent for path in sorted(fold.glob(f"pseudo_labels*/{CSV}"))}
    if checkpoint is not None:
        wanted = f"pseudo_labels_{Path(checkpoint).stem.removeprefix('checkpoint_')}"
        chosen = found.get(wanted)
    else:
        chosen = found.get("pseudo_labels") or (next(iter(found.values())) if len(found) == 1 else None)
    if chosen is None:
        if checkpoint is None and found:
            several = ", ".join(f"-chk checkpoint{name.removeprefix('pseudo_labels')}.pth" for name in found)
            raise MutualError(f"{fold} has several sets of pseudo labels; say which: {several}")
        of = f" -chk {checkpoint}" if checkpoint else ""
        raise MutualError(
            f"{fold} has no finished pseudo labels{of}; make them with: {training.pseudo_label_command}{of}"
        )
    return fold.parent, PseudoStore(chosen)
