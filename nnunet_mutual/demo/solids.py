"""Solid shapes as signed distances, and a canvas that paints them with partial-volume edges.

A shape is an array (Z, Y, X) of distances in mm to its surface, negative inside. Ellipsoids use a first-order distance,
exact at the surface; that is all that an edge of one voxel needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

Array = np.ndarray
Point = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Space:
    """Coordinates of every voxel in mm, each (Z, Y, X): x to the patient's left, y to the back, z to the head."""

    x: Array
    y: Array
    z: Array


def grid(shape: Sequence[int], spacing: Sequence[float]) -> Space:
    """Returns voxel coordinates with the origin in the middle of the image.

    Args:
        shape: (Z, Y, X) voxels.
        spacing: (Z, Y, X) mm.
    """
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = (axis.astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij"))
    return Space(x, y, z)


def smooth_field(rng: np.random.Generator, shape: Sequence[int], sigma: Sequence[float]) -> Array:
    """Returns smooth random values (Z, Y, X) with mean 0 and standard deviation 1; ``sigma`` in voxels."""
    field = gaussian_filter(rng.standard_normal(shape).astype(np.float32), sigma, mode="nearest")
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def ellipsoid(space: Space, centre: Point, radii: Point, tilt: float = 0.0, turn: float = 0.0) -> Array:
    """Returns an ellipsoid.

    Args:
        space: coordinates.
        centre: (x, y, z) mm.
        radii: (x, y, z) mm.
        tilt: rotation in the coronal plane, radians; positive moves the upper pole to the patient's left.
        turn: rotation in the axial plane, radians.
    """
    x, y, z = space.x - centre[0], space.y - centre[1], space.z - centre[2]
    if tilt:
        x, z = x * np.cos(tilt) - z * np.sin(tilt), x * np.sin(tilt) + z * np.cos(tilt)
    if turn:
        x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    rx, ry, rz = radii
    ratio = np.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (z / rz) ** 2)
    slope = np.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2 + (z / rz**2) ** 2)
    return np.where(slope > 1e-6, ratio * (ratio - 1) / np.maximum(slope, 1e-6), -min(radii))


def column(space: Space, x: Array | float, y: Array | float, rx: float, ry: float) -> Array:
    """Returns a column of elliptical section along z; its centre may depend on z."""
    a, b = (space.x - x) / rx, (space.y - y) / ry
    ratio = np.sqrt(a**2 + b**2)
    slope = np.sqrt((a / rx) ** 2 + (b / ry) ** 2)
    return np.where(slope > 1e-6, ratio * (ratio - 1) / np.maximum(slope, 1e-6), -min(rx, ry))


def rod(space: Space, start: Point, end: Point, radius: float) -> Array:
    """Returns a straight rod with round ends, for vessels."""
    axis = np.subtract(end, start)
    offset = (space.x - start[0], space.y - start[1], space.z - start[2])
    along = sum(o * a for o, a in zip(offset, axis, strict=True)) / float(axis @ axis)
    along = np.clip(along, 0, 1)
    return np.sqrt(sum((o - along * a) ** 2 for o, a in zip(offset, axis, strict=True))) - radius


def blend(first: Array, second: Array, width: float) -> Array:
    """Returns the union of two shapes with a fillet of ``width`` mm where they meet."""
    mix = np.maximum(width - np.abs(first - second), 0) / width
    return np.minimum(first, second) - mix**2 * width / 4


def without(shape: Array, removed: Array) -> Array:
    """Returns the first shape minus the second."""
    return np.maximum(shape, -removed)


class Canvas:
    """An image and its label map, painted shape over shape.

    Args:
        space: coordinates.
        background: value before anything is painted.
        edge: width in mm over which a voxel at a surface mixes both sides (partial volume).
    """

    def __init__(self, space: Space, background: float, edge: float):
        self.image = np.full(space.x.shape, background, dtype=np.float32)
        self.labels = np.zeros(space.x.shape, dtype=np.uint8)
        self.edge = edge

    def paint(self, shape: Array, value: Array | float, label: int | None = 0) -> None:
        """Paints a shape.

        Args:
            shape: signed distance (Z, Y, X).
            value: one value, or one per voxel.
            label: integer of its voxels; 0 for a structure that nobody annotates, None to leave the labels as they are.
        """
        share = np.clip(0.5 - shape / self.edge, 0, 1)
        self.image += share * (value - self.image)
        if label is not None:
            self.labels[shape < 0] = label
