r"""Surface Dice and HD95, with what nnU-Net installs: SciPy's distances and scikit-image's marching cubes.

The surface of a mask consists of elements: one for every block of 2 x 2 (x 2) voxels that is neither full nor empty,
of the area (2d: length) that marching cubes gives it, and where a block can be cut in two ways, the smaller area. These
are the elements of Nikolov et al. (arXiv 1809.04430), whose code monai adapted; the values are those of monai's
``compute_surface_dice(use_subvoxels=True)`` and ``compute_hausdorff_distance(percentile=95)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from skimage.measure import marching_cubes, mesh_surface_area

_ROUNDING = 1e-6  # a distance of exactly the tolerance is within it, whatever the last digit of a square root


def surface_dice(
    predicted: NDArray[np.bool_], drawn: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> float:
    """Returns the share of both surfaces, by area, that lies within a tolerance of the other one.

    Args:
        predicted: (Z, Y, X) or (Y, X) mask with a voxel at least.
        drawn: likewise.
        spacing: size of a voxel in mm, one number per axis.
        tolerance: in mm.
    """
    areas = [_element_areas(mask, tuple(spacing)) for mask in (predicted, drawn)]
    within = 0.0
    for own, other in (areas, areas[::-1]):
        near = distance_transform_edt(other == 0, sampling=spacing) <= tolerance * (1 + _ROUNDING)
        within += float(own[near].sum())
    return within / float(areas[0].sum() + areas[1].sum())


def hd95(predicted: NDArray[np.bool_], drawn: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Returns the larger of the two 95th percentiles of the distances from surface voxels to the other surface, in mm.

    The arguments are those of :func:`surface_dice`. Surface voxels are those with a neighbour outside the mask.
    """
    surfaces = [mask & ~binary_erosion(mask) for mask in (predicted, drawn)]
    distances = [distance_transform_edt(~other, sampling=spacing)[own] for own, other in (surfaces, surfaces[::-1])]
    return float(max(np.percentile(found, 95) for found in distances))


def _element_areas(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Returns the area of the surface element between each block of neighbours; a mask ends at the image's border."""
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, corner in enumerate(np.ndindex(*(2,) * mask.ndim)):
        code |= padded[tuple(slice(at, n - 1 + at) for at, n in zip(corner, padded.shape, strict=True))] << bit
    return _table(spacing)[code]


@functools.cache
def _table(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Returns the area of a surface element for each way in which its corners can lie inside the mask."""
    size = 2 ** len(spacing)
    found = np.zeros(2**size)
    for code in range(1, len(found) - 1):
        inside = np.array([code >> bit & 1 for bit in range(size)], np.float32).reshape((2,) * len(spacing))
        found[code] = _length(inside, spacing) if len(spacing) == 2 else _area(inside, spacing)
    return np.minimum(found, found[::-1])  # inside and outside exchanged: the same surface


def _area(inside: NDArray[np.float32], spacing: tuple[float, ...]) -> float:
    vertices, faces, *_ = marching_cubes(inside, 0.5, spacing=spacing, method="lorensen")
    return float(mesh_surface_area(vertices, faces))


def _length(inside: NDArray[np.float32], spacing: tuple[float, ...]) -> float:
    """The length of an edge where both corners of a side are inside, else half a diagonal for each corner alone."""
    for axis in (0, 1):
        if inside.sum() == 2 and np.ptp(inside.sum(axis)) == 2:
            return spacing[axis]
    return (2 if inside.sum() == 2 else 1) * 0.5 * math.hypot(*spacing)
