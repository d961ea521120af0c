"""A training folder as nnU-Net and the trainers leave it, without the training: curves, alarms, validation by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tiny
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

KEYS = [f"case_{i:02d}" for i in range(6)]
EPOCHS = 6
ALARM = "network 0 predicts {} times as much liver on case_04 of Doe (/data/Doe/case_04_0000.nii.gz) as it should"


def block() -> dict[str, Any]:
    """Sources alternate: north draws the liver, south the rest."""
    sources = {"north": {"annotated": ["liver"]}, "south": {"annotated": ["tumour", "spleen"]}}
    cases = {key: {"source": ("north", "south")[i % 2], "patient": f"Doe{i}"} for i, key in enumerate(KEYS)}
    cases["case_04"]["patient"] = "Doe"
    return {"version": 1, "sources": sources, "cases": cases}


def write_folder(
    root: Path, *, trainer: str = "PartialTrainer", settings: dict[str, Any] | None = None, validated: bool = True
) -> Path:
    """Writes a dataset and a training of its fold 0, of which case_01, case_02 and case_05 are validated.

    Args:
        root: parent of nnUNet_raw and the other two.
        trainer: its name.
        settings: of the trainer; None of a stock one.
        validated: whether whole cases were predicted, all labels of them, as the stock trainer does it.

    Returns:
        The folder of the fold.
    """
    preprocessed = tiny.make_dataset(root, block=block(), cases=len(KEYS), configurations=())
    held_out = ["case_01", "case_02", "case_05"]
    split = {"train": [key for key in KEYS if key not in held_out], "val": held_out}
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))
    base = root / "nnUNet_results" / tiny.NAME / f"{trainer}__nnUNetPlans__3d_fullres"
    fold = base / "fold_0"
    fold.mkdir(parents=True)
    for name, target in (("dataset.json", "dataset.json"), ("nnUNetPlans.json", "plans.json")):
        (base / target).write_text((preprocessed / name).read_text())
    if settings is not None:
        (base / "mutual_settings.json").write_text(json.dumps({"trainer": trainer, **settings}))
        write_log(fold)
    write_checkpoint(fold)
    if validated:
        write_validation(preprocessed, fold, held_out)
    return fold


def write_log(fold: Path) -> None:
    """Two stages of three epochs, a weight that rises, a diagnostic of each label, an alarm in two epochs."""
    lines: list[dict[str, Any]] = []
    text = ["2026-01-01 10:00:00.0: WARNING: fold 0: few cases "]
    for epoch in range(EPOCHS):
        terms = {"seg[0]": 1.0 - 0.1 * epoch, "seg[1]": 1.1 - 0.1 * epoch, ("pd[0]", "ps[0]")[epoch >= 3]: 0.5}
        weights = {name: 1.0 if name.startswith("seg") else epoch / EPOCHS for name in terms}
        line = {"epoch": epoch, "loss": sum(terms.values()), "terms": terms, "weights": weights}
        lines.append({**line, "diagnostics": {"mu of liver": 0.1 * epoch, "mu of spleen": 0.2}})
        lines.append({"epoch": epoch, "validation": {"Dice of liver, rectified": 0.5 + 0.05 * epoch}})
        text.append(f"2026-01-01 10:00:00.0: Epoch {epoch} ")
        if epoch in (2, 4):
            text.append(f"2026-01-01 10:00:00.0: WARNING: {ALARM.format(0.1 * epoch)} ")
    (fold / "mutual_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 6, "lo')
    versions = json.dumps({"nnunet_mutual": "0.0.7", "torch": "9.9"})
    (fold / "training_log_2026.txt").write_text("\n".join([*text, f"2026-01-01 10:00:00.0: Versions: {versions} "]))


def write_checkpoint(fold: Path) -> None:
    """A final checkpoint whose log holds NumPy's scalars, as nnU-Net's own does."""
    scores = np.linspace(0.5, 0.8, EPOCHS).astype(np.float32)
    logging = {
        "ema_fg_dice": [np.float64(value) for value in (*scores[:-1], 0.6)],
        "dice_per_class_or_region": [[value, np.float32("nan"), value / 2] for value in scores],
        "train_losses": [np.float32(1.0)] * EPOCHS,
        "val_losses": [np.float32(1.5)] * EPOCHS,
        "lrs": [0.01] * EPOCHS,
        "epoch_start_timestamps": [float(epoch) for epoch in range(EPOCHS)],
        "epoch_end_timestamps": [epoch + 0.5 for epoch in range(EPOCHS)],
    }
    torch.save({"logging": logging, "network_weights": {}}, fold / "checkpoint_final.pth")


def write_validation(preprocessed: Path, fold: Path, keys: list[str]) -> None:
    """Predictions that are the whole truth moved by a voxel, but no tumour in the last case."""
    folder = fold / "validation"
    folder.mkdir()
    for key in keys:
        labels = np.roll(tiny.image_and_labels(int(key[-2:]))[1], 1, axis=2)
        if key == keys[-1]:
            labels[labels == 2] = 1
        tiny.write_nifti(labels, folder / f"{key}.nii.gz")
    references = preprocessed / "gt_segmentations"
    only = fold / "references"
    only.mkdir()
    for key in keys:
        image = sitk.ReadImage(str(references / f"{key}.nii.gz"))
        sitk.WriteImage(image, str(only / f"{key}.nii.gz"))
    compute_metrics_on_folder(
        str(only), str(folder), str(folder / "summary.json"), SimpleITKIO(), ".nii.gz", [1, 2, 3], num_processes=1
    )
