"""A raw dataset with the fingerprint of large images, so that planners have something to shrink; no large file."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from tiny import NAME, PLAIN, image_and_labels, write_nifti

KEYS = [f"case_{i:02d}" for i in range(4)]
BRAIN = [128, 128, 128], [1.0, 1.0, 1.0]
PROSTATE = [20, 320, 319], [3.6, 0.62, 0.62]
CASES = 300  # as many as let nnU-Net's 5 % rule leave the batch alone


def make_raw(
    root: Path,
    *,
    image: tuple[Sequence[int], Sequence[float]] = BRAIN,
    block: dict[str, Any] | None = None,
    channels: Sequence[str] = ("T1",),
    unlabelled: int = 0,
    **entries: Any,
) -> Path:
    """Writes nnUNet_raw and a fingerprint.

    Args:
        root: parent of nnUNet_raw and nnUNet_preprocessed.
        image: shape and spacing of all images, as the fingerprint says.
        block: the "mutual" block of dataset.json.
        channels: names.
        unlabelled: images in imagesUn.
        entries: of dataset.json.
    """
    raw, pre = root / "nnUNet_raw" / NAME, root / "nnUNet_preprocessed" / NAME
    for folder in (raw / "imagesTr", raw / "labelsTr", raw / "imagesUn", pre):
        folder.mkdir(parents=True)
    picture, labels = image_and_labels(0)
    for n in range(len(channels)):
        for key in KEYS:
            write_nifti(picture, raw / "imagesTr" / f"{key}_{n:04d}.nii.gz")
        for key in range(unlabelled):
            write_nifti(picture, raw / "imagesUn" / f"un_{key}_{n:04d}.nii.gz")
    for key in KEYS:
        write_nifti(labels, raw / "labelsTr" / f"{key}.nii.gz")
    content: dict[str, Any] = {
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": PLAIN,
        "numTraining": CASES,
        "file_ending": ".nii.gz",
        **entries,
    }
    if block is not None:
        content["mutual"] = block
    (raw / "dataset.json").write_text(json.dumps(content))
    shape, spacing = image
    statistics = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [list(spacing)] * 4,
        "shapes_after_crop": [list(shape)] * 4,
        "foreground_intensity_properties_per_channel": {str(n): statistics for n in range(len(channels))},
        "median_relative_size_after_cropping": 1.0,
    }
    (pre / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return pre


def plan(planner: Any, gigabytes: float | None = None) -> tuple[dict[str, Any], str]:
    """Returns the plans and what was printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        _, name = plan_experiment_dataset(901, planner, gigabytes)
    return read_plans(name), said.getvalue()


def read_plans(name: str) -> dict[str, Any]:
    import os

    found: dict[str, Any] = json.loads((Path(os.environ["nnUNet_preprocessed"]) / NAME / f"{name}.json").read_text())
    return found
