"""The generated dataset on which every trainer is measured: noise with balls, of which each case annotates a part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from settings import CONFIGURATION, read_json, write_json

SMALL = {"patch_size": [40, 56, 40], "batch_size": 2, "features_per_stage": [8, 16, 32, 64]}
GROUPS = {"A": ["A"], "B": ["B"]}  # modality groups, of one channel each
BY_GROUP = "Dataset991_StepGroups"


def in_parts(parts: int) -> str:
    """Returns the name of the dataset in which each case annotates one of so many parts of the labels."""
    return f"Dataset{980 + parts}_StepParts{parts}"


def make_dataset(work: Path, name: str, *, plans: str, size: Sequence[int], labels: int, parts: int) -> None:
    """Writes a dataset, and lets nnU-Net plan and preprocess it; BY_GROUP has two channels, others have one.

    Args:
        work: holds nnUNet_raw and nnUNet_preprocessed.
        name: nnU-Net's name of the dataset.
        plans: "small" for the network of the other benchmarks, "full" for what nnU-Net plans.
        size: of the images, voxels.
        labels: number of foreground labels.
        parts: into which they are divided; a case annotates one of them.
    """
    channels = list(GROUPS) if name == BY_GROUP else ["MRI"]
    raw = work / "nnUNet_raw" / name
    names = [f"label{i + 1}" for i in range(labels)]
    content = _write_cases(raw, channels, names, np.array(size), [list(p) for p in np.array_split(names, parts)])
    if name == BY_GROUP:
        content["mutual"]["modality_groups"] = GROUPS
    write_json(raw / "dataset.json", content)
    _prepare(work / "nnUNet_preprocessed" / name, int(name[7:10]), plans)


def _write_cases(
    raw: Path, channels: list[str], names: list[str], size: np.ndarray, parts: list[list[str]]
) -> dict[str, Any]:
    """Writes images and labels and returns the content of dataset.json."""
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    number = 2 * max(4, len(names))
    grid = np.stack(np.meshgrid(*(np.arange(s) for s in size), indexing="ij"), -1)
    cases, sources = {}, {}
    for case in range(number):
        annotated = [str(label) for label in parts[case % len(parts)]]
        labels = np.zeros(size, dtype=np.uint8)
        for label in annotated:
            centre = generator.uniform(0.2, 0.8, 3) * size
            labels[((grid - centre) ** 2).sum(-1) < (0.12 * size.min()) ** 2] = names.index(label) + 1
        for n in range(len(channels)):
            image = (generator.normal(0, 1, size) + 0.5 * labels).astype(np.float32)
            sitk.WriteImage(sitk.GetImageFromArray(image), str(raw / "imagesTr" / f"case_{case:03d}_{n:04d}.nii.gz"))
            further = generator.normal(0, 1, size).astype(np.float32)
            place = raw / "imagesUn" / f"further_{case:03d}_{n:04d}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(further), str(place))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(raw / "labelsTr" / f"case_{case:03d}.nii.gz"))
        source = "+".join(annotated)
        sources[source] = {"annotated": annotated}
        cases[f"case_{case:03d}"] = {"source": source}
    return {
        "channel_names": {str(n): channel for n, channel in enumerate(channels)},
        "labels": {"background": 0, **{label: i + 1 for i, label in enumerate(names)}},
        "numTraining": number,
        "file_ending": ".nii.gz",
        "mutual": {"version": 1, "sources": sources, "cases": cases},
    }


def _prepare(preprocessed: Path, identity: int, kind: str) -> None:
    """Plans and preprocesses; the measured configuration is one of its own."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )
    from preparation import small_configuration

    from nnunet_mutual.annotation.modality_groups import PLANS_KEY
    from nnunet_mutual.preprocessing.by_group import GroupPreprocessor
    from nnunet_mutual.preprocessing.update import preprocess_unlabelled

    extract_fingerprint_dataset(identity, num_processes=2, show_progress_bar=False)
    plan_experiment_dataset(identity)
    file = preprocessed / "nnUNetPlans.json"
    plans = read_json(file)
    if preprocessed.name == BY_GROUP:
        plans[PLANS_KEY] = GROUPS
        GroupPreprocessor(verbose=False).run(identity, "3d_fullres", "nnUNetPlans", 2)
    else:
        preprocess_dataset(identity, "nnUNetPlans", ("3d_fullres",), [2], show_progress_bar=False)
    small = small_configuration(plans, SMALL) if kind == "small" else {"inherits_from": "3d_fullres"}
    plans["configurations"][CONFIGURATION] = small
    write_json(file, plans)
    preprocess_unlabelled(identity, configurations=[CONFIGURATION], processes=1)
