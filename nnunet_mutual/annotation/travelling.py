"""What may travel with an exported model, key by key: a list of what may, since nobody can list all that may not.

Groups add keys of their own to dataset.json and plans (patients, hospitals, paths), and tools add them to everything
else. Whatever is not named here stays behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Any], Any]

# Keys of numbers: labels and channels by integer, statistics of intensities, metrics of nnU-Net.
_OF_NUMBERS = re.compile(
    r"[\d(), ]+|max|mean|median|min|std|percentile_\d\d_\d|Dice|IoU|FP|TP|FN|TN|n_pred|n_ref", re.ASCII
)
_WORD = re.compile(r"\w[\w.-]*")


def _numbers(value: Any) -> Any:
    """Numbers, also as text, and lists and objects of them."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items() if _OF_NUMBERS.fullmatch(str(key))}
    if isinstance(value, (list, tuple)):
        return [_numbers(item) for item in value]
    return value if isinstance(value, (int, float)) or isinstance(value, str) and value.isdecimal() else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value]


def _names(value: Any) -> dict[str, str]:
    return {str(key): str(name) for key, name in value.items()}


def _labels(value: Any) -> dict[str, Any]:
    return {str(name): _numbers(integers) for name, integers in value.items()}


def _arguments(value: Any) -> Any:
    """Arguments of a function, which an unknown one would stop."""
    return value


def _architecture(value: Any) -> dict[str, Any]:
    rules = {"network_class_name": _text, "arch_kwargs": _arguments, "_kw_requires_import": _texts}
    return _chosen(value, rules)


_DATASET: dict[str, Rule] = {
    "channel_names": _names,
    "modality": _names,
    "labels": _labels,
    "regions_class_order": _numbers,
    "numTraining": _numbers,
    "file_ending": _text,
    "overwrite_image_reader_writer": _text,
}
_PLANS: dict[str, Rule] = {
    **dict.fromkeys(("dataset_name", "plans_name", "image_reader_writer", "experiment_planner_used"), _text),
    **dict.fromkeys(("original_median_spacing_after_transp", "original_median_shape_after_transp"), _numbers),
    **dict.fromkeys(("transpose_forward", "transpose_backward"), _numbers),
    "label_manager": _text,
    "foreground_intensity_properties_per_channel": _numbers,
    "foreground_intensity_properties_by_modality": _numbers,
}
_RESAMPLING = tuple(f"resampling_fn_{what}" for what in ("data", "seg", "probabilities"))
_OF_OLD_PLANS = (
    *("UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder"),
    *("num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes"),
)
_CONFIGURATION: dict[str, Rule] = {
    **dict.fromkeys(("inherits_from", "previous_stage", "data_identifier", "preprocessor_name"), _text),
    **dict.fromkeys(("batch_size", "patch_size", "median_image_size_in_voxels", "spacing", "batch_dice"), _numbers),
    "normalization_schemes": _texts,
    "use_mask_for_norm": _numbers,
    **dict.fromkeys(_RESAMPLING, _text),
    **{f"{name}_kwargs": _arguments for name in _RESAMPLING},
    "architecture": _architecture,
    "UNet_class_name": _text,
    **dict.fromkeys(_OF_OLD_PLANS, _numbers),
}
_FINGERPRINT: dict[str, Rule] = dict.fromkeys(
    (
        "spacings",
        "shapes_after_crop",
        "median_relative_size_after_cropping",
        "foreground_intensity_properties_per_channel",
    ),
    _numbers,
)
_SUMMARY: dict[str, Rule] = {"foreground_mean": _numbers, "mean": _numbers}
_LOG: dict[str, Rule] = dict.fromkeys(
    (
        "mean_fg_dice",
        "ema_fg_dice",
        "dice_per_class_or_region",
        "train_losses",
        "val_losses",
        "lrs",
        "epoch_start_timestamps",
        "epoch_end_timestamps",
    ),
    _numbers,
)


def without_identities(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what prediction needs of a dataset.json: channels, labels, file ending, reader."""
    return _chosen(dataset_json, _DATASET)


def plans_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Returns what nnU-Net reads of plans, with one configuration and what that inherits from.

    Args:
        plans: of the training.
        configuration: that is exported.
    """
    kept: dict[str, Any] = {}
    name: str | None = configuration
    while name is not None and name not in kept:
        kept[name] = _chosen(plans["configurations"][name], _CONFIGURATION)
        name = kept[name].get("inherits_from")
    return {**_chosen(plans, _PLANS), "configurations": kept}


def fingerprint_of(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers of a dataset_fingerprint.json."""
    return _chosen(fingerprint, _FINGERPRINT)


def without_case_names(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics of a summary.json, whose cases are numbered instead of named by path."""
    cases = []
    for number, case in enumerate(summary["metric_per_case"], 1):
        name = f"case_{number:03d}"
        cases.append({"metrics": _numbers(case["metrics"]), "prediction_file": name, "reference_file": name})
    return {**_chosen(summary, _SUMMARY), "metric_per_case": cases}


def checkpoint_of(
    trained: Mapping[str, Any], trainer: str, plans: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the checkpoint of a stock model; optimiser and training state stay behind.

    Args:
        trained: checkpoint of the training.
        trainer: name of the class that nnU-Net shall predict with.
        plans: of the export.
        dataset_json: of the export.
    """
    arguments = {"configuration": trained["init_args"]["configuration"], "fold": trained["init_args"]["fold"]}
    return {
        "network_weights": trained["network_weights"],
        "trainer_name": trainer,
        "init_args": {"plans": plans, **arguments, "dataset_json": dataset_json, "device": "cpu"},
        "logging": _chosen(trained["logging"], _LOG),
        **{key: _numbers(trained[key]) for key in ("_best_ema", "current_epoch", "inference_allowed_mirroring_axes")},
    }


def settings_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings of a training that are numbers or single words, which no path and no full name is."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            kept[key] = settings_of(value)
        elif value is None or isinstance(value, (int, float)) or isinstance(value, str) and _WORD.fullmatch(value):
            kept[key] = value
        elif isinstance(value, (list, tuple)):
            kept[key] = _numbers(value)
    return kept


def _chosen(content: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    return {key: rule(content[key]) for key, rule in rules.items() if key in content}
