"""Whether folds in one folder belong together: the last one to begin wrote the plans.json and dataset.json there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.travelling import plans_of
from nnunet_mutual.datasets.raw import read_dataset_json
from nnunet_mutual.datasets.sync import first_difference
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.trainings import checkpoints_in
from nnunet_mutual.errors import MutualError

# Of plans, what says nothing about what a trained network sees and says.
_NO_MATTER = ("dataset_name", "plans_name", "experiment_planner_used")
_NO_MATTER_EITHER = ("batch_size", "batch_dice", "data_identifier", "median_image_size_in_voxels")
_OF_INTENSITIES = "foreground_intensity_properties_"


def what_predicts(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Returns what decides how images reach the networks of a configuration, and what their answers mean.

    Args:
        plans: of the training.
        dataset_json: of the training.
        configuration: that is trained.
    """
    kept = plans_of(plans, configuration)
    by_ct = any("CTNormalization" in one.get("normalization_schemes", ()) for one in kept["configurations"].values())
    found = {
        key: value
        for key, value in kept.items()
        if key not in _NO_MATTER
        and not key.startswith("original_median_")
        and (by_ct or not key.startswith(_OF_INTENSITIES))
    }
    found["configurations"] = {
        name: {key: value for key, value in one.items() if key not in _NO_MATTER_EITHER}
        for name, one in kept["configurations"].items()
    }
    regions = dataset_json.get("regions_class_order")
    labels = dataset_json["labels"]
    found["labels"] = labels if regions is None else [list(pair) for pair in labels.items()]
    found["regions_class_order"] = regions
    found["channel_names"] = dataset_json.get("channel_names", dataset_json.get("modality"))
    return dict(json.loads(json.dumps(found)))  # tuples of a checkpoint as the lists of a file


def require_recorded(checkpoint: Mapping[str, Any], folder: Path, fold: str) -> None:
    """Verifies that a training folder says of a fold what its checkpoint says.

    Args:
        checkpoint: of the fold.
        folder: of all folds, ``<trainer>__<plans>__<configuration>``.
        fold: for the sentence.

    Raises:
        MutualError: another fold has been trained there since, with other labels, channels or plans.
    """
    own, configuration = checkpoint["init_args"], checkpoint["init_args"]["configuration"]
    place = _difference(own["plans"], own["dataset_json"], _plans(folder), read_dataset_json(folder), configuration)
    if place:
        raise MutualError(
            f"fold {fold} of {folder} was trained with other labels, channels or plans than plans.json and "
            f"dataset.json there say ({place}): another fold was trained since. Train fold {fold} anew, or put those "
            "two files of its own time back"
        )


def refuse_other_folds(
    folder: Path, own: Path, plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str
) -> None:
    """Verifies that a training which begins fits the other folds in its folder, whose plans it would replace.

    Args:
        folder: of all folds.
        own: folder of the fold that begins.
        plans: with which it does.
        dataset_json: likewise.
        configuration: that is trained.

    Raises:
        MutualError: they were trained with other labels, channels or plans.
    """
    others = [path.name for path in sorted(folder.glob("fold_*")) if path != own and checkpoints_in(path)]
    files = (folder / "plans.json", folder / "dataset.json")
    if not others or not all(file.is_file() for file in files):
        return
    place = _difference(_plans(folder), read_dataset_json(folder), plans, dataset_json, configuration)
    if place:
        raise MutualError(
            f"{', '.join(others)} of {folder} was trained with other labels, channels or plans ({place}), and a "
            "model of all folds would be wrong; move that folder away, or give the new plans another name"
        )


def _plans(folder: Path) -> dict[str, Any]:
    return read_plans(folder / "plans.json")


def _difference(
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    now: Mapping[str, Any],
    dataset_json_now: Mapping[str, Any],
    configuration: str,
) -> str:
    """Names the first entry that differs, '' if none does."""
    if configuration not in now["configurations"]:
        return f"no configuration {configuration}"
    before = what_predicts(plans, dataset_json, configuration)
    after = what_predicts(now, dataset_json_now, configuration)
    return first_difference(before, after) if before != after else ""
