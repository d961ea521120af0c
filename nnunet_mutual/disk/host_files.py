"""Files that nnU-Net writes and people edit: plans, splits, summaries. Their shape is verified where they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import read_json, read_object
from nnunet_mutual.disk.images import require_reader
from nnunet_mutual.disk.names import safe_name
from nnunet_mutual.disk.shapes import Shape, require_shape
from nnunet_mutual.errors import MutualError

_CONFIGURATION: Shape = {
    "inherits_from?": str,
    "data_identifier?": str,
    "preprocessor_name?": str,
    "batch_size?": int,
    "batch_dice?": bool,
    "patch_size?": [int],
    "spacing?": [float],
    "median_image_size_in_voxels?": [float],
    "normalization_schemes?": [str],
    "use_mask_for_norm?": [bool],
    "previous_stage?": (str, None),
    "architecture?": {"network_class_name": str, "arch_kwargs": dict, "_kw_requires_import": [str]},
}
_PLANS: Shape = {
    "plans_name": str,
    "dataset_name?": str,
    "image_reader_writer?": str,
    "transpose_forward?": [int],
    "transpose_backward?": [int],
    "label_manager?": str,
    "foreground_intensity_properties_per_channel?": {...: dict},
    "configurations": {...: _CONFIGURATION},
}
_PLAN_AGAIN = "correct it, or plan again with nnUNetv2_plan_experiment"
_REQUIRED = ("data_identifier", "batch_size", "patch_size", "spacing")
_FINGERPRINT: Shape = {
    "spacings?": [[float]],
    "shapes_after_crop?": [[int]],
    "foreground_intensity_properties_per_channel?": {...: {...: float}},
    "median_relative_size_after_cropping?": float,
}
_FINGERPRINT_AGAIN = (
    "copy it anew from the dataset's folder in nnUNet_preprocessed (if it is damaged there, too, delete it and run "
    "nnunet_mutual plan_and_preprocess)"
)
_SPLITS: Shape = [{"train": [str], "val": [str]}]
_METRICS: Shape = {"Dice": (float, None), "TP": float, "n_ref": float, "n_pred": float}
_SUMMARY: Shape = {
    "metric_per_case": [{"prediction_file": str, "reference_file?": str, "metrics": {...: {...: (float, None)}}}],
}


def read_plans(path: Path) -> dict[str, Any]:
    """Reads a plans file.

    Raises:
        MutualError: missing or malformed, of another shape than nnU-Net's plans, or of nnU-Net v1.
    """
    plans = read_object(path)
    require_plans(plans, path)
    return plans


def require_plans(plans: Any, file: object) -> None:
    """Verifies the shape of plans.

    Args:
        plans: content of a plans file.
        file: its path, or words for it.

    Raises:
        MutualError: with the place of the slip, such as configurations.3d_fullres.patch_size.
    """
    fix = _PLAN_AGAIN
    if isinstance(plans, Mapping) and "configurations" not in plans and "plans_per_stage" in plans:
        raise MutualError(f"{file} holds plans of nnU-Net v1, which nnU-Net v2 cannot read; plan the dataset anew")
    require_shape(plans, _PLANS, file, fix)
    require_safe_names(plans, file)
    for name, configuration in plans["configurations"].items():
        if "inherits_from" in configuration:
            continue  # merged_block follows these
        if "architecture" not in configuration and "UNet_class_name" not in configuration:
            raise MutualError(
                f'"configurations.{name}" in {file} has no "architecture" (plans of another nnU-Net?); {fix}'
            )
        for key in _REQUIRED:
            entry_of(configuration, key, f'"configurations.{name}" in {file}')
        _require_sizes(configuration, f'"configurations.{name}" in {file}', fix)
    if "image_reader_writer" in plans:
        require_reader(plans["image_reader_writer"], f'"image_reader_writer" in {file}')
    for key in ("transpose_forward", "transpose_backward"):
        axes = plans.get(key, [])
        if sorted(axes) != list(range(len(axes))):
            raise MutualError(f'"{key}" in {file} must be the axes 0, 1, 2 in any order, found {axes}; {fix}')


def entry_of(plans: Mapping[str, Any], key: str, place: object) -> Any:
    """Returns an entry of plans, or of a configuration, that most of this package can do without.

    Raises:
        MutualError: there is none.
    """
    if key not in plans:
        raise MutualError(f'{place} has no "{key}"; {_PLAN_AGAIN}')
    return plans[key]


def _require_sizes(configuration: Mapping[str, Any], place: str, fix: str) -> None:
    """Verifies numbers of which networks and loaders would say something else, or nothing, in the middle of a step."""
    patch, spacing, batch = (configuration[key] for key in ("patch_size", "spacing", "batch_size"))
    if batch < 1:
        raise MutualError(f'{place} has a "batch_size" of {batch}, expected 1 or more; {fix}')
    if len(patch) not in (2, 3) or min(patch) < 1:
        raise MutualError(f'{place} has the "patch_size" {patch}, expected 2 or 3 numbers from 1; {fix}')
    if len(spacing) != len(patch) or not all(0 < value < math.inf for value in spacing):
        raise MutualError(f'{place} has the "spacing" {spacing}, expected {len(patch)} numbers above 0; {fix}')
    described = configuration.get("architecture", {"arch_kwargs": {}})["arch_kwargs"]
    kind = str(described.get("conv_op"))[-2:]
    if kind in ("1d", "2d", "3d") and kind != f"{len(patch)}d":
        raise MutualError(f'{place} has a "conv_op" for {kind}, but a "patch_size" of {len(patch)} numbers; {fix}')
    strides = described.get("strides")
    if _is_table(strides):  # of nnU-Net's own networks
        smaller = [math.prod(axis) for axis in zip(*strides, strict=False)]
        if len(smaller) != len(patch) or any(size % least for size, least in zip(patch, smaller, strict=True)):
            raise MutualError(f'{place} has "strides" that do not divide its "patch_size" {patch}; {fix}')
    schemes, masks = (configuration.get(key, ()) for key in ("normalization_schemes", "use_mask_for_norm"))
    if len(schemes) != len(masks):
        raise MutualError(
            f'{place} has {len(schemes)} "normalization_schemes" and {len(masks)} "use_mask_for_norm", expected one of '
            f"each for every channel; {fix}"
        )


def _is_table(value: Any) -> bool:
    """Whether a value is a list of lists of whole numbers from 1."""
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, list) and all(isinstance(n, int) and n > 0 for n in row) for row in rows)


def require_safe_names(plans: Mapping[str, Any], place: object) -> None:
    """Verifies every name of plans that nnU-Net or this package makes a path of.

    Args:
        plans: the content of a plans file.
        place: it, for the sentence.

    Raises:
        MutualError: a name would leave its folder.
    """
    named: dict[str, Any] = {key: plans[key] for key in ("dataset_name", "plans_name") if key in plans}
    configurations = plans.get("configurations")
    for name, entry in configurations.items() if isinstance(configurations, Mapping) else ():
        safe_name(name, f"configuration of {place}")
        for key in ("data_identifier", "previous_stage", "next_stage"):
            value = entry.get(key) if isinstance(entry, Mapping) else None
            for number, one in enumerate(value if isinstance(value, list) else [value]):
                if one is not None:
                    named[f"{key} of {name}" + (f" ({number + 1})" if number else "")] = one
    for what, value in named.items():
        safe_name(value, f'"{what}" in {place}')


def read_fingerprint(path: Path, fix: str = _FINGERPRINT_AGAIN) -> dict[str, Any]:
    """Reads a dataset_fingerprint.json.

    Args:
        path: of the file, by default of the copy that nnU-Net puts beside a training.
        fix: what makes it anew, for the sentence.

    Raises:
        MutualError: it is missing, was not written to its end, or has another shape.
    """
    try:
        content = read_object(path)
    except MutualError:
        raise MutualError(f"{path} is missing, was not written to its end or was changed; {fix}") from None
    require_shape(content, _FINGERPRINT, path, fix)
    return content


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """Reads a splits_final.json.

    Raises:
        MutualError: missing or malformed, or no list of {"train": [...], "val": [...]}.
    """
    splits: list[dict[str, list[str]]] = read_json(path)
    require_shape(splits, _SPLITS, path, 'correct it to a list of {"train": [...], "val": [...]}, or delete it')
    if not splits:
        raise MutualError(f"{path} holds no fold; delete it to get new folds")
    return splits


def read_summary(path: Path) -> dict[str, Any]:
    """Reads a summary.json of a validation.

    Raises:
        MutualError: missing or malformed, or of another shape than nnU-Net's.
    """
    summary = read_object(path)
    fix = "make it anew: nnunet_mutual train ... --val"
    require_shape(summary, _SUMMARY, path, fix)
    for number, case in enumerate(summary["metric_per_case"]):
        for label, metrics in case["metrics"].items():
            require_shape(metrics, _METRICS, path, fix, f"metric_per_case[{number}].metrics.{label}")
    return summary
