"""Whether folds in one folder belong together: the last one to begin wrote the plans.json and dataset.json there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.travelling import plans_of
from nnunet_mutual.datasets.raw import read_dataset_json
from nnunet_mutual.datasets.sync import first_difference
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.trainings import checkpoints_in
from nnunet_mutual.engine.checkpoint_file import read_checkpoint
from nnunet_mutual.errors import MutualError

# What of plans and of a configuration says nothing about how an image reaches a trained network.
_OF_PLANS = ("dataset_name", "plans_name", "experiment_planner_used", "configurations")
_OF_CONFIGURATIONS = ("batch_size", "batch_dice", "data_identifier", "median_image_size_in_voxels", "patch_size")
_MEDIANS, _INTENSITIES = "original_median_", "foreground_intensity_properties_"
# Schemes that look at nothing but the image.
_OF_IMAGES = ("ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")


def what_predicts(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Returns what decides how images reach the networks of a configuration, and what their answers mean.

    Args:
        plans: of the training.
        dataset_json: of the training.
        configuration: that is trained; what it inherits counts as its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnU-Net's about older plans
        own = PlansManager(dict(plans)).get_configuration(configuration).configuration
    own = {key: value for key, value in own.items() if key != "inherits_from"}
    kept = plans_of({**plans, "configurations": {configuration: own}}, configuration)
    own = {key: value for key, value in kept["configurations"][configuration].items() if key not in _OF_CONFIGURATIONS}
    left_out = (_MEDIANS, _INTENSITIES) if {*own["normalization_schemes"]} <= {*_OF_IMAGES} else (_MEDIANS,)
    regions = dataset_json.get("regions_class_order")
    found = {
        **{key: value for key, value in kept.items() if key not in _OF_PLANS and not key.startswith(left_out)},
        "configuration": own,
        "modality groups": list(plans.get(PLANS_KEY, {}).items()),
        "labels": dataset_json["labels"] if regions is None else list(dataset_json["labels"].items()),
        "regions_class_order": regions,
        "channel_names": dataset_json.get("channel_names", dataset_json.get("modality")),
    }
    return dict(json.loads(json.dumps(found)))  # tuples of a checkpoint as the lists of a file


def difference(checkpoint: Mapping[str, Any], plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> str:
    """Names the first entry in which plans and dataset.json differ from those that a checkpoint was trained with.

    Args:
        checkpoint: of nnU-Net or of this package.
        plans: to compare with.
        dataset_json: likewise.

    Returns:
        Words such as 'first at labels/liver'; '' where nothing that matters differs, or the checkpoint does not say.
    """
    own = checkpoint.get("init_args", {})
    try:
        then = what_predicts(own["plans"], own["dataset_json"], own["configuration"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return ""  # whoever needs it says what is damaged
    if own["configuration"] not in plans["configurations"]:
        return f"no configuration {own['configuration']}"
    now = what_predicts(plans, dataset_json, own["configuration"])
    return first_difference(then, now) if then != now else ""


def require_recorded(checkpoint: Mapping[str, Any], folder: Path, fold: str) -> None:
    """Verifies that a training folder says of a fold what its checkpoint says.

    Args:
        checkpoint: of the fold.
        folder: of all folds, ``<trainer>__<plans>__<configuration>``.
        fold: for the sentence.

    Raises:
        MutualError: it does not, as after a training of another fold with other labels, channels or plans.
    """
    place = difference(checkpoint, read_plans(folder / "plans.json"), read_dataset_json(folder))
    if place:
        raise MutualError(
            f"fold {fold} of {folder} was trained with other labels, channels or plans than plans.json and "
            f"dataset.json there say ({place}), as where another fold was trained later with new ones; train fold "
            f"{fold} anew"
        )


def refuse_other_folds(folder: Path, own: Path, plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> None:
    """Verifies that a training which begins fits the other folds in its folder, whose plans it replaces.

    Args:
        folder: of all folds.
        own: folder of the fold that begins.
        plans: with which it does.
        dataset_json: likewise.

    Raises:
        MutualError: one of them was trained with other labels, channels or plans.
    """
    for other in sorted(folder.glob("fold_*")):
        names = checkpoints_in(other) if other != own else []
        try:
            place = difference(read_checkpoint(other / names[-1], mapped=True), plans, dataset_json) if names else ""
        except MutualError:  # damaged: it will not be exported, either
            continue
        if place:
            raise MutualError(
                f"{other.name} of {folder} was trained with other labels, channels or plans ({place}), and a model of "
                "both folds would be wrong; move that fold's folder away, or give the new plans another name"
            )
