"""A tiny nnU-Net dataset, made and preprocessed in process: no pools, no planner, seconds instead of minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

NAME = "Dataset901_Tiny"
PLAIN = {"background": 0, "liver": 1, "tumour": 2, "spleen": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


def two_sources(annotated_a: list[str], annotated_b: list[str], keys: list[str], **block: Any) -> dict[str, Any]:
    """An annotation block whose first half of cases is of source a, the second half of source b."""
    half = len(keys) // 2
    return {
        "version": 1,
        "sources": {"a": {"annotated": annotated_a}, "b": {"annotated": annotated_b}},
        "cases": {key: {"source": "a" if i < half else "b"} for i, key in enumerate(keys)},
        **block,
    }


def image_and_labels(seed: int, *, size: tuple[int, int, int] = (16, 20, 18)) -> tuple[np.ndarray, np.ndarray]:
    """A liver with a tumour in it and a spleen beside it; intensities follow the labels."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")

    def ball(center: tuple[float, ...], radius: float) -> np.ndarray:
        return sum((g - c) ** 2 for g, c in zip((z, y, x), center, strict=True)) < radius**2

    shift = rng.uniform(-1, 1, 3)
    labels = np.zeros(size, np.uint8)
    labels[ball((8 + shift[0], 7 + shift[1], 6 + shift[2]), 5)] = 1
    labels[ball((8 + shift[0], 6 + shift[1], 6 + shift[2]), 2.2)] = 2
    labels[ball((8 + shift[0], 14 + shift[1], 13 + shift[2]), 3.5)] = 3
    image = np.array([0.2, 1.0, 2.0, 3.0])[labels] + rng.normal(0, 0.2, size)
    return image.astype(np.float32), labels


def write_nifti(array: np.ndarray, file: Path, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(file))


def plans(*, batch_size: int = 2, batch_dice: bool = False) -> dict[str, Any]:
    """Plans with every kind of configuration: 2d, 3d_lowres, 3d_fullres, a cascade, and anisotropic kernels."""

    def architecture(dim: int, strides: list, kernels: list) -> dict[str, Any]:
        return {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 6, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": kernels,
                "strides": strides,
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }

    def resampling(order: int) -> dict[str, Any]:
        return {"is_seg": order == 1, "order": order, "order_z": 0, "force_separate_z": None}

    def configuration(name: str, spacing: list[float], patch: list[int], arch: dict, **more: Any) -> dict[str, Any]:
        return {
            "data_identifier": f"nnUNetPlans_{name}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": batch_size,
            "patch_size": patch,
            "median_image_size_in_voxels": [16.0, 20.0, 18.0],
            "spacing": spacing,
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {**resampling(3), "is_seg": False},
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_seg_kwargs": resampling(1),
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {**resampling(1), "is_seg": False},
            "architecture": arch,
            "batch_dice": batch_dice,
            **more,
        }

    cube, iso, flat = [3, 3, 3], [2, 2, 2], [1, 2, 2]
    threed = architecture(3, [[1, 1, 1], iso, iso], [cube] * 3)
    aniso = architecture(3, [[1, 1, 1], flat, iso], [[1, 3, 3], cube, cube])
    twod = architecture(2, [[1, 1], [2, 2], [2, 2]], [[3, 3]] * 3)
    lowres = configuration("3d_lowres", [2.0, 2.0, 2.0], [8, 8, 8], threed, next_stage="3d_cascade_fullres")
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [16, 20, 18],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
        },
        "configurations": {
            "2d": configuration("2d", [1.0, 1.0], [16, 16], twod),
            "3d_lowres": lowres,
            "3d_fullres": configuration("3d_fullres", [1.0, 1.0, 1.0], [16, 16, 16], threed),
            "3d_aniso": configuration("3d_aniso", [1.0, 1.0, 1.0], [8, 16, 16], aniso),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def make_dataset(
    root: Path,
    *,
    labels: dict[str, Any] | None = None,
    block: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    cases: int = 6,
    configurations: tuple[str, ...] = ("3d_fullres",),
    ignore: bool = False,
    batch_dice: bool = False,
    drop: bool = True,
) -> Path:
    """Writes nnUNet_raw and nnUNet_preprocessed below ``root``, with unannotated labels set to 0 in the label maps.

    Args:
        root: becomes the parent of nnUNet_raw, nnUNet_preprocessed and nnUNet_results (the caller sets the variables).
        labels: "labels" of dataset.json; plain ones by default.
        block: the "mutual" block, or None.
        settings: the "mutual" block of every configuration in the plans.
        cases: number of cases, named case_00, case_01, ...
        configurations: which to preprocess.
        ignore: adds an ignore label and draws it over one corner of each case.
        batch_dice: as in plans.
        drop: whether labels that a case does not annotate are removed from its label map.

    Returns:
        The preprocessed dataset folder.
    """
    labels = dict(labels or PLAIN)
    raw, pre = root / "nnUNet_raw" / NAME, root / "nnUNet_preprocessed" / NAME
    for folder in (raw / "imagesTr", raw / "labelsTr", pre / "gt_segmentations", root / "nnUNet_results"):
        folder.mkdir(parents=True)
    if ignore:
        labels["ignore"] = 4
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    if any(isinstance(value, list) for value in labels.values()):
        dataset["regions_class_order"] = [1, 2, 3]
    if block is not None:
        dataset["mutual"] = block
    plan = plans(batch_dice=batch_dice)
    for configuration in plan["configurations"].values():
        if settings and "inherits_from" not in configuration:
            configuration["mutual"] = settings
    for index in range(cases):
        _write_case(raw, pre, f"case_{index:02d}", index, dataset, ignore, drop)
    for folder in (raw, pre):
        (folder / "dataset.json").write_text(json.dumps(dataset))
    (pre / "nnUNetPlans.json").write_text(json.dumps(plan))
    (pre / "dataset_fingerprint.json").write_text("{}")
    manager = PlansManager(json.loads(json.dumps(plan)))
    for name in configurations:
        _preprocess(raw, pre, manager, name, dataset)
    return pre


def _write_case(raw: Path, pre: Path, key: str, seed: int, dataset: dict, ignore: bool, drop: bool) -> None:
    image, segmentation = image_and_labels(seed)
    block = dataset.get("mutual")
    if block is not None and drop:
        entry = block["cases"][key]
        says = {**block["sources"][entry["source"]], **entry}
        segmentation = keep_only(segmentation, [*says["annotated"], *says.get("incomplete", [])], dataset["labels"])
    if ignore:
        segmentation[:4, :4, :4] = 4
    write_nifti(image, raw / "imagesTr" / f"{key}_0000.nii.gz")
    for folder in (raw / "labelsTr", pre / "gt_segmentations"):
        write_nifti(segmentation, folder / f"{key}.nii.gz")


def keep_only(segmentation: np.ndarray, annotated: list[str], labels: dict[str, Any]) -> np.ndarray:
    """What a reader who draws only these labels would have drawn; of a region, its first integer."""
    regions = any(isinstance(value, list) for value in labels.values())
    kept = np.zeros_like(segmentation)
    for name in sorted(annotated, key=lambda n: -len(labels[n]) if regions else labels[n]):
        values = labels[name] if isinstance(labels[name], list) else [labels[name]]
        kept[np.isin(segmentation, values)] = values[0]
    return kept


def _preprocess(raw: Path, pre: Path, manager: PlansManager, name: str, dataset: dict) -> None:
    configuration = manager.get_configuration(name)
    folder = pre / configuration.data_identifier
    folder.mkdir(exist_ok=True)
    preprocessor = DefaultPreprocessor(verbose=False)
    for image in sorted((raw / "imagesTr").glob("*.nii.gz")):
        key = image.name.removesuffix("_0000.nii.gz")
        label = raw / "labelsTr" / f"{key}.nii.gz"
        preprocessor.run_case_save(str(folder / key), [str(image)], str(label), manager, configuration, dataset)
