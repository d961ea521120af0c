"""Turns arrays of nnU-Net's readers so that a radiologist sees them as usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

_TOWARDS = ("L", "P", "S")  # of the axes x, y, z, as SimpleITK and DICOM count


@dataclass(frozen=True)
class Turn:
    """How to turn the voxels of an image.

    Attributes:
        transform: nibabel's, from the axes of the file (x, y, z) to left, posterior, superior; None if the format
            says nothing about the patient.
        spacing: mm per voxel, (Z, Y, X), after the turn.
    """

    transform: np.ndarray | None
    spacing: tuple[float, ...]

    def turn(self, volume: np.ndarray) -> np.ndarray:
        """Turns (Z, Y, X)."""
        return volume if self.transform is None else apply_orientation(volume.T, self.transform).T


def frame_of(properties: Mapping[str, Any]) -> Turn:
    """Returns the frame of an image.

    Args:
        properties: of nnU-Net's reader.
    """
    spacing = tuple(float(s) for s in properties["spacing"])
    axes = _axes(properties)
    if axes is None:
        return Turn(None, spacing)
    transform = ornt_transform(io_orientation(axes), axcodes2ornt(_TOWARDS))
    # Row i of a transform says where axis i of the file goes; spacing is counted backwards, as arrays are.
    order = np.argsort(transform[:, 0])
    return Turn(transform, tuple(np.array(spacing[::-1])[order][::-1]))


def _axes(properties: Mapping[str, Any]) -> np.ndarray | None:
    """Returns nibabel's affine, without the origin."""
    affine = np.eye(4)
    if "sitk_stuff" in properties and len(properties["sitk_stuff"]["direction"]) == 9:
        affine[:3, :3] = np.diag([-1, -1, 1]) @ np.reshape(properties["sitk_stuff"]["direction"], (3, 3))
    elif "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine[:3, :3] = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]))[:3, :3]
    else:
        return None
    return affine
