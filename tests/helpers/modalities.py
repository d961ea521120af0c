"""A raw dataset of two registered modalities, T1 and FLAIR, in which one of them shows a structure less well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny import NAME, PLAIN, image_and_labels, write_nifti

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import main
from nnunet_mutual.preprocessing.by_group import GroupPreprocessor

CHANNELS = {"0": "T1", "1": "FLAIR"}
GROUPS = {"T1": ["T1"], "FLAIR": ["FLAIR"], "both": ["T1", "FLAIR"]}


def modalities(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Two images, each zero outside of its own box, and the labels."""
    first, labels = image_and_labels(seed)
    second = (3.5 - first) * 50 + np.random.default_rng(seed + 100).normal(0, 10, first.shape)
    first[:, :2] = 0
    second[:, :, -3:] = 0
    return [first + 0.001 * (first != 0), second.astype(np.float32)], labels


def make_raw(
    root: Path,
    *,
    groups: Mapping[str, Sequence[str]] | None = GROUPS,
    missing: Mapping[str, str] | None = None,
    labels: dict[str, Any] | None = None,
    ignore: bool = False,
    cases: int = 6,
    unlabelled: int = 3,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Path:
    """Writes nnUNet_raw/Dataset901_Tiny.

    Args:
        root: parent of nnUNet_raw.
        groups: modality groups of the block, or None for a dataset.json without block.
        missing: case -> the channel that it lacks, for which no file is written.
        labels: "labels" of dataset.json.
        ignore: adds an ignore label and draws it over one corner of each case.
        cases: case_00, case_01, ...
        unlabelled: un_0, un_1, ...
        spacing: of the files, X Y Z, mm.
    """
    raw, missing = root / "nnUNet_raw" / NAME, dict(missing or {})
    (root / "nnUNet_preprocessed").mkdir(exist_ok=True)
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (raw / folder).mkdir(parents=True)
    keys = [f"case_{n:02d}" for n in range(cases)]
    for number, key in enumerate([*keys, *(f"un_{n}" for n in range(unlabelled))]):
        images, drawn = modalities(number)
        folder = raw / ("imagesTr" if key in keys else "imagesUn")
        for channel, image in enumerate(images):
            if missing.get(key) != CHANNELS[str(channel)]:
                write_nifti(image, folder / f"{key}_{channel:04d}.nii.gz", spacing)
        if ignore:
            drawn[:4, :4, :4] = 4
        if key in keys:
            write_nifti(drawn, raw / "labelsTr" / f"{key}.nii.gz", spacing)
    content: dict[str, Any] = {
        "channel_names": CHANNELS,
        "labels": {**(labels or PLAIN), **({"ignore": 4} if ignore else {})},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    if any(isinstance(value, list) for value in content["labels"].values()):
        content["regions_class_order"] = [1, 2, 3]
    if groups is not None:
        names = [name for name in content["labels"] if name not in ("background", "ignore")]
        listed = {key: {"source": "a"} for key in keys} | {key: {"source": "a"} for key in missing}
        for key, channel in missing.items():
            listed[key] = {"source": "a", "missing": [channel]}
        content["mutual"] = {
            "version": 1,
            "sources": {"a": {"annotated": names}},
            "cases": listed,
            "modality_groups": dict(groups),
        }
    (raw / "dataset.json").write_text(json.dumps(content))
    return raw


def make_preprocessed(
    root: Path, *, settings: Mapping[str, Any] | None = None, configuration: str = "3d_fullres", **options: Any
) -> Path:
    """Writes nnUNet_raw and nnUNet_preprocessed, preprocessed by group; no pools, no planner.

    Args:
        root: parent of nnUNet_raw and nnUNet_preprocessed.
        settings: the "mutual" block of the configuration in the plans.
        configuration: which is preprocessed.
        options: of :func:`make_raw`.

    Returns:
        The preprocessed dataset folder, whose plans are called nnUNetPlans.
    """
    raw = make_raw(root, **options)
    folder = root / "nnUNet_preprocessed" / NAME
    (folder / "gt_segmentations").mkdir(parents=True)
    (root / "nnUNet_results").mkdir(exist_ok=True)
    plans = tiny.plans()
    plans["modality_groups"] = json.loads((raw / "dataset.json").read_text())["mutual"]["modality_groups"]
    intensities = plans["foreground_intensity_properties_per_channel"]
    plans["foreground_intensity_properties_per_channel"] = {"0": intensities["0"], "1": intensities["0"]}
    for entry in plans["configurations"].values():
        if "inherits_from" not in entry:
            entry |= {"normalization_schemes": ["ZScoreNormalization"] * 2, "use_mask_for_norm": [False, False]}
            entry["mutual"] = dict(settings or {})
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset_fingerprint.json").write_text("{}")
    (folder / "dataset.json").write_text((raw / "dataset.json").read_text())
    manager = PlansManager(json.loads(json.dumps(plans)))
    chosen = manager.get_configuration(configuration)
    content = json.loads((raw / "dataset.json").read_text())
    data = folder / chosen.data_identifier
    data.mkdir()
    for label in sorted((raw / "labelsTr").glob("*.nii.gz")):
        key = label.name.removesuffix(".nii.gz")
        files = sorted(str(file) for file in (raw / "imagesTr").glob(f"{key}_*.nii.gz"))
        GroupPreprocessor(verbose=False).run_case_save(str(data / key), files, str(label), manager, chosen, content)
        (folder / "gt_segmentations" / label.name).write_bytes(label.read_bytes())
    if any((raw / "imagesUn").iterdir()):
        assert main(["preprocess_unlabelled", "-d", "901", "-c", configuration]) == 0
    return folder


def two_channels(missing: Mapping[str, str] | None = None) -> AnnotationTable:
    """A table of T1 and FLAIR, some cases of which lack a channel."""
    cases = {key: {"source": "a", "missing": [channel]} for key, channel in (missing or {}).items()}
    block = {"version": 1, "sources": {"a": {"annotated": [*PLAIN][1:]}}, "cases": cases}
    return AnnotationTable.from_dataset_json({"channel_names": CHANNELS, "labels": PLAIN, "mutual": block})
