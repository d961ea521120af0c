"""Unmodified nnU-Net tools evaluate trainings on partially labelled data rightly: two trainers, two folds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from training import trainer_for

from nnunet_mutual.trainers import PartialTrainer

KEYS = [f"case_{i:02d}" for i in range(4)]
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "amp": "off", "seed": 0}


class OtherPartialTrainer(PartialTrainer):
    """A second trainer, since ensembles need two models."""


def train(preprocessed: Path, trainer_class: type[PartialTrainer], fold: int) -> None:
    trainer = trainer_for(preprocessed, trainer_class, fold=fold)
    trainer.run_training()
    trainer.perform_actual_validation(save_probabilities=True)


def dice(reference: np.ndarray, prediction: np.ndarray, label: int) -> float:
    a, b = reference == label, prediction == label
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_find_best_configuration_ensemble_and_postprocessing(nnunet_folders: Path) -> None:
    # Sources alternate, so that each fold's validation has both and each label is annotated in one case of it.
    block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS)
    block["cases"] = {key: {"source": "ab"[i % 2]} for i, key in enumerate(KEYS)}
    preprocessed = tiny.make_dataset(nnunet_folders, block=block, settings=SHORT, cases=4)
    splits = [{"train": KEYS[2:], "val": KEYS[:2]}, {"train": KEYS[:2], "val": KEYS[2:]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for trainer_class in (PartialTrainer, OtherPartialTrainer):
        for fold in (0, 1):
            train(preprocessed, trainer_class, fold)

    models = [
        {"plans": "nnUNetPlans", "configuration": "3d_fullres", "trainer": name}
        for name in ("PartialTrainer", "OtherPartialTrainer")
    ]
    found = find_best_configuration(901, models, num_processes=1, folds=(0, 1))

    results = nnunet_folders / "nnUNet_results" / tiny.NAME
    reference = nnunet_folders / "nnUNet_raw" / tiny.NAME / "labelsTr"
    annotated = {key: (1,) if i % 2 == 0 else (2, 3) for i, key in enumerate(KEYS)}
    for name in ("PartialTrainer", "OtherPartialTrainer"):
        merged = results / f"{name}__nnUNetPlans__3d_fullres" / "crossval_results_folds_0_1"
        summary = json.loads((merged / "summary.json").read_text())
        for label in (1, 2, 3):
            scored = [key for key in KEYS if label in annotated[key]]
            by_hand = [dice(read(reference / f"{k}.nii.gz"), read(merged / f"{k}.nii.gz"), label) for k in scored]
            assert summary["mean"][str(label)]["Dice"] == pytest.approx(np.mean(by_hand))
        assert np.isfinite(found["all_results"][f"{name}__nnUNetPlans__3d_fullres"])
        for key in KEYS:
            assert set(np.unique(read(merged / f"{key}.nii.gz"))) <= {0, *annotated[key]}

    ensemble = next((results / "ensembles").iterdir())
    for key in KEYS:
        averaged = np.mean(
            [
                np.load(results / f"{model['trainer']}__nnUNetPlans__3d_fullres/fold_{fold}/validation/{key}.npz")[
                    "probabilities"
                ]
                for model in models
                for fold in (0, 1)
                if key in splits[fold]["val"]
            ],
            0,
        )
        assert np.array_equal(read(ensemble / f"{key}.nii.gz"), averaged.argmax(0))
        assert set(np.unique(averaged.argmax(0))) <= {0, *annotated[key]}
    assert np.isfinite(found["best_model_or_ensemble"]["result_on_crossval_post_pp"])
    full = results / "PartialTrainer__nnUNetPlans__3d_fullres" / "fold_0" / "validation_full"
    assert any(set(np.unique(read(file))) - {0, *annotated[file.name[:7]]} for file in full.glob("*.nii.gz"))
