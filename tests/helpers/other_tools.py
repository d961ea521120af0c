"""Masks of the tiny dataset as other tools write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tiny
from reviewing import truth, voxels

Change = Callable[[np.ndarray], np.ndarray]


def same(labels: np.ndarray) -> np.ndarray:
    return labels


def label_maps(folder: Path, keys: list[str], change: Change = same, labels: Mapping[str, Any] | None = None) -> Path:
    """``CASE.nii.gz`` of everything there is to see, with a dataset.json."""
    folder.mkdir(parents=True)
    for key in keys:
        tiny.write_nifti(change(truth(key)).astype(np.uint8), folder / f"{key}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": labels or tiny.PLAIN}))
    return folder


def organs(folder: Path, keys: list[str], names: Mapping[str, int], change: Change = same) -> Path:
    """``CASE/organ.nii.gz``, as TotalSegmentator writes them."""
    for key in keys:
        (folder / key).mkdir(parents=True)
        labels = change(truth(key))
        for name, value in names.items():
            tiny.write_nifti((labels == value).astype(np.uint8), folder / key / f"{name}.nii.gz")
    return folder


def probabilities(folder: Path, keys: list[str], sure: float) -> Path:
    """``CASE.npz`` as of ``nnUNetv2_predict --save_probabilities``."""
    folder.mkdir(parents=True)
    for key in keys:
        labels = truth(key)
        p = np.stack([np.where(labels == value, sure, (1 - sure) / 3) for value in range(4)])
        np.savez_compressed(folder / f"{key}.npz", probabilities=p.astype(np.float32))
    (folder / "dataset.json").write_text(json.dumps({"labels": tiny.PLAIN}))
    return folder


def resampled(file: Path, factor: float, shift: tuple[float, float, float] = (0, 0, 0)) -> None:
    """Puts a mask on a grid with so many times the voxels along each axis, in the same box of the patient."""
    mask = sitk.ReadImage(str(file))
    grid = sitk.Image([round(n * factor) for n in mask.GetSize()], mask.GetPixelID())
    spacing = [s * n / m for s, n, m in zip(mask.GetSpacing(), mask.GetSize(), grid.GetSize(), strict=True)]
    grid.SetSpacing(spacing)
    corner = [-0.5 + 0.5 * new / old for new, old in zip(spacing, mask.GetSpacing(), strict=True)]
    grid.SetOrigin(mask.TransformContinuousIndexToPhysicalPoint(corner))
    moved = sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    moved.SetOrigin(np.add(moved.GetOrigin(), shift).tolist())
    sitk.WriteImage(moved, str(file))


def rewrite(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes the voxels of a file."""
    tiny.write_nifti(change(voxels(file)), file)
