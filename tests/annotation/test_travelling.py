"""What travels with an export is listed; whatever a group has added to its files stays behind."""

from __future__ import annotations

import json
from typing import Any

import torch

from nnunet_mutual.annotation.travelling import (
    checkpoint_of,
    fingerprint_of,
    plans_of,
    settings_of,
    without_case_names,
    without_identities,
)

WHO = "Jane Roe"
DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "whole": [1, 2]},
    "regions_class_order": [1, 2],
    "numTraining": 3,
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "SimpleITKIO",
}
CONFIGURATION: dict[str, Any] = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "spacing": [1.0, 1.0, 1.0],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "force_separate_z": None},
    "architecture": {
        "network_class_name": "torch.nn.Conv3d",
        "arch_kwargs": {"n_stages": 2, "conv_op": "torch.nn.Conv3d"},
        "_kw_requires_import": ["conv_op"],
    },
}
INTENSITIES = {"0": {"max": 3.0, "percentile_00_5": 1.0, "std": 2.0}}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset901_Tiny",
    "plans_name": "nnUNetPlans",
    "transpose_forward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": INTENSITIES,
    "configurations": {"3d_fullres": CONFIGURATION, "3d_fullres_long": {"inherits_from": "3d_fullres"}},
}
MORE = {"patients": [WHO], "path": f"/home/{WHO}", WHO: 1, "description": WHO, "mutual": {"cases": {WHO: {}}}}


def test_a_dataset_json_keeps_what_prediction_needs() -> None:
    assert without_identities({**DATASET, **MORE, "name": WHO, "reference": WHO, "training": [WHO]}) == DATASET


def test_plans_keep_what_nnunet_reads() -> None:
    architecture = {**CONFIGURATION["architecture"], **MORE}
    full: dict[str, Any] = {**CONFIGURATION, **MORE, "architecture": architecture}
    configurations = {"3d_fullres": full, "3d_fullres_long": {"inherits_from": "3d_fullres", **MORE}, WHO: full}
    statistics = {"0": {**INTENSITIES["0"], WHO: 1.0}, WHO: {}}
    spoilt = {**PLANS, **MORE, "configurations": configurations}
    spoilt["foreground_intensity_properties_per_channel"] = statistics
    assert plans_of(spoilt, "3d_fullres_long") == PLANS
    assert list(plans_of(spoilt, "3d_fullres")["configurations"]) == ["3d_fullres"]


def test_a_fingerprint_keeps_numbers() -> None:
    numbers = {"spacings": [[1.0, 1.0, 1.0]], "foreground_intensity_properties_per_channel": INTENSITIES}
    assert fingerprint_of({**numbers, **MORE}) == numbers


def test_a_summary_keeps_metrics() -> None:
    scores = {"1": {"Dice": 0.5, "TP": 3}, "(1, 2)": {"Dice": None}}
    case = {"metrics": {**scores, WHO: {"Dice": 1.0}}, "reference_file": f"/x/{WHO}", "prediction_file": WHO, **MORE}
    found = without_case_names({"metric_per_case": [case], "mean": {**scores, **MORE}, "foreground_mean": {}, **MORE})
    assert found["metric_per_case"] == [
        {"metrics": scores, "reference_file": "case_001", "prediction_file": "case_001"}
    ]
    assert found["mean"] == scores and set(found) == {"metric_per_case", "mean", "foreground_mean"}


def test_a_checkpoint_keeps_weights_and_curves() -> None:
    weights = {"a.weight": torch.ones(2)}
    trained = {
        "network_weights": weights,
        "init_args": {"configuration": "2d", "fold": 0, "plans": MORE, "dataset_json": MORE, "device": "cuda", **MORE},
        "logging": {"lrs": [0.1], "mean_fg_dice": [0.5, WHO], **MORE},
        "_best_ema": 0.5,
        "current_epoch": 3,
        "inference_allowed_mirroring_axes": (0, 1),
        **MORE,
    }
    found = checkpoint_of(trained, "nnUNetTrainer", PLANS, DATASET)
    assert found.pop("network_weights") is weights
    assert found["init_args"] == {
        "plans": PLANS,
        "configuration": "2d",
        "fold": 0,
        "dataset_json": DATASET,
        "device": "cpu",
    }
    assert found["logging"] == {"lrs": [0.1], "mean_fg_dice": [0.5, None]}
    assert tuple(found["inference_allowed_mirroring_axes"]) == (0, 1)
    assert WHO not in json.dumps(found)


def test_settings_keep_numbers_and_words() -> None:
    kept = {"memory": "auto", "loss": {"pd": 0.5}, "seed": None, "steps": [1, 2]}
    assert settings_of({**kept, "folder": "/home/x", "reader": WHO}) == kept
