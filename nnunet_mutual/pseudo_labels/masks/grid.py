"""Masks on the grid of the image: as they are, resampled within the same physical space, or refused."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_mutual.datasets.volumes import Finding, Volume, compare_grids, read_volume
from nnunet_mutual.disk.images import quiet
from nnunet_mutual.errors import MutualError

_PARALLEL = 1e-3  # of the cosine between axes, 2.6 degrees


def read_image(path: Path, reader: BaseReaderWriter, key: str) -> Volume:
    """Reads the image of a case whose grid masks must have.

    Raises:
        MutualError: it cannot be read.
    """
    return _read(path, reader, key, is_label=False)


def read_on_grid(path: Path, image: Volume, reader: BaseReaderWriter, key: str) -> np.ndarray:
    """Reads a mask or a label map on the grid of an image; on another grid it is resampled with nearest neighbours.

    Args:
        path: of the mask.
        image: of the case.
        reader: nnU-Net's, of the dataset.
        key: the case, for sentences.

    Returns:
        (Z, Y, X) int32.

    Raises:
        MutualError: it cannot be read, holds other than whole numbers, or shows another physical space.
    """
    mask = _read(path, reader, key, is_label=True)
    if not (mask.voxels == np.rint(mask.voxels)).all():
        raise MutualError(
            f"case {key}: {path} holds values that are no whole numbers, as after interpolation; resample it with "
            "nearest neighbours, or give nnU-Net's probabilities as .npz"
        )
    if mask.voxels.min() < 0:
        raise MutualError(f"case {key}: {path} holds the value {mask.voxels.min():g}; a label map holds 0 and more")
    found = Finding()
    compare_grids(image, mask, "the mask", found)
    voxels = mask.voxels[0]
    if any(problem.severity == "error" for problem in found.problems):
        if image.origin is None or mask.origin is None:  # a format that knows no position
            raise MutualError(f"case {key}: {path}: {found.problems[0].text}")
        voxels = _resampled(path, image.path, reader, key)
    return np.asarray(voxels).astype(np.int32)


def _read(path: Path, reader: BaseReaderWriter, key: str, *, is_label: bool) -> Volume:
    found = Finding()
    volume = read_volume(path, reader, found, is_label=is_label)
    if volume is None or found.problems:
        raise MutualError(f"case {key}: {path}: {found.problems[0].text}")
    return volume


def _resampled(path: Path, image: Path, reader: BaseReaderWriter, key: str) -> np.ndarray:
    """Goes through a file, since only its reader knows how it turns the axes of the dataset."""
    try:
        mask, reference = (sitk.ReadImage(str(file)) for file in (path, image))
    except RuntimeError as error:
        raise MutualError(
            f"case {key}: {path} has another grid than {image.name}, and SimpleITK, which would resample it, cannot "
            f"read both: {str(error).splitlines()[-1]}; make the mask on the grid of the image"
        ) from None
    difference = _other_space(mask, reference)
    if difference:
        raise MutualError(
            f"case {key}: {path} shows another physical space than {image.name}: {difference}; make it from this "
            "image, or correct its header"
        )
    moved = sitk.Resample(mask, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / image.name
        sitk.WriteImage(moved, str(file))
        with quiet():
            voxels: Any = reader.read_seg(str(file))[0][0]
    return np.asarray(voxels)


def _other_space(mask: sitk.Image, image: sitk.Image) -> str:
    """Says in which way two images show different boxes of the patient, if they do by more than a voxel; else ''."""
    if mask.GetDimension() != 3 or image.GetDimension() != 3:
        return f"it has {mask.GetDimension()} axes, the image {image.GetDimension()}"
    axes, wanted = (np.array(one.GetDirection()).reshape(3, 3) for one in (mask, image))
    if not np.allclose(np.abs(wanted.T @ axes).max(0), 1, atol=_PARALLEL):
        return "its axes are not parallel to those of the image"
    corners = itertools.product(*((-0.5, n - 0.5) for n in mask.GetSize()))
    places = [
        image.TransformPhysicalPointToContinuousIndex(mask.TransformContinuousIndexToPhysicalPoint(corner))
        for corner in corners
    ]
    size, spacing = np.array(image.GetSize()), np.array(image.GetSpacing())
    away = np.abs([np.min(places, 0) + 0.5, np.max(places, 0) + 0.5 - size]).max(0) * spacing
    if (away > max(*mask.GetSpacing(), *spacing)).any():
        return f"its ends are {' x '.join(f'{mm:.4g}' for mm in away)} mm (x, y, z) away from those of the image"
    return ""
