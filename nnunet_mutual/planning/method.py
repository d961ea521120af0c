"""What a dataset is planned for: a trainer, its settings and their needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import training_cases, unlabelled_cases
from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.plugin.find import resolve, training_names
from nnunet_mutual.preprocessing.fingerprint import counts_ignored
from nnunet_mutual.settings import read_settings


@dataclass(frozen=True)
class Method:
    """A trainer, its settings, and what they need on a dataset.

    Attributes:
        trainer: class name.
        why: why this one.
        given: settings that the user chose.
        needs: what they need in memory.
        outputs: of a network.
        regions: whether outputs are regions.
    """

    trainer: str
    why: str
    given: Mapping[str, Any]
    needs: Needs
    outputs: int
    regions: bool


def method_of(planner: Any, trainer: str | None, given: Mapping[str, Any] | None) -> Method:
    """Finds out what one of nnU-Net's planners is to plan for.

    Args:
        planner: after its own ``__init__``.
        trainer: as of :func:`method_for`.
        given: likewise.
    """
    raw, content = Path(planner.raw_dataset_folder), planner.dataset_json
    table = AnnotationTable.from_dataset_json(content)
    files, _ = training_cases(raw, content)
    table.require(files)
    unlabelled, _ = unlabelled_cases(raw, content, files)
    if counts_ignored(planner.dataset_fingerprint, content):
        print(
            "WARNING: ignored voxels are among the intensities by which the images will be normalised; plan with "
            f"nnunet_mutual plan_and_preprocess -d {raw.name} --clean"
        )
    return method_for(table, list(files), bool(unlabelled), trainer, given or {})


def method_for(
    table: AnnotationTable, cases: Sequence[str], unlabelled: bool, trainer: str | None, given: Mapping[str, Any]
) -> Method:
    """Finds out what a dataset is to be planned for.

    Args:
        table: the annotation table.
        cases: training cases.
        unlabelled: whether imagesUn holds images.
        trainer: name of a trainer of this package; None chooses one by what the dataset holds.
        given: settings of the trainer.

    Raises:
        MutualError: an unknown trainer or setting, or a dataset that lacks what the trainer needs.
    """
    why = "as asked for"
    if trainer is None:
        trainer, why = chosen_trainer(table, cases, unlabelled)
    known = training_names()
    if trainer not in known:
        raise MutualError(f"no trainer is called {trainer!r}{meant(trainer, known)}; known are: {', '.join(known)}")
    trainer_class = resolve("trainers", trainer)
    settings = read_settings(trainer_class.settings_class, given, "", f"of --set for {trainer}")
    regions = table.is_regions
    needs = trainer_class.needs(settings, table, cases)
    return Method(trainer, why, dict(given), needs, len(table.labels) + (not regions), regions)


def chosen_trainer(table: AnnotationTable, cases: Sequence[str], unlabelled: bool) -> tuple[str, str]:
    """Returns the trainer that a dataset asks for, and why.

    Args:
        table: the annotation table.
        cases: training cases.
        unlabelled: whether imagesUn holds images.
    """
    annotated = [table.case(key).annotated for key in cases]
    if table.modality_groups:
        return "MutualCrossModalTrainer", f"{len(table.modality_groups)} modality groups"
    if unlabelled or frozenset() in annotated:
        return "MeanTeacherTrainer", "there are unlabelled images"
    if any(labels != frozenset(table.labels) for labels in annotated):
        return "MutualPartialTrainer", "cases annotate different labels"
    return "PartialTrainer", "every case annotates every label"
