"""Simulates a second, registered modality of a real image: other contrast, coarser, noisier, one structure unseen.

Fixed before any method was run on it. Everything that is made with it says "simulated modality".
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

AROUND = 3.0  # voxels, of the surroundings that fill a hidden structure
SOFT = 0.7  # voxels, of its blurred border
COARSE = 2  # how much coarser, along each axis
AIR, MUCH_AIR = 0.1, 0.3  # of the grey scale; of the voxels
NOISE = 0.05  # standard deviation, of a grey scale from 0 to 1

Image = NDArray[np.float32]


def second_modality(image: NDArray[np.floating], labels: NDArray[np.integer], hidden: int, key: str) -> Image:
    """Returns the simulated modality, with a grey scale up to about 1000.

    Args:
        image: (Z, Y, X) real image.
        labels: its label map.
        hidden: integer of the structure that the second modality cannot show.
        key: of the case; the noise is drawn from it.
    """
    random = np.random.default_rng(zlib.crc32(key.encode()))
    body = _body(image)
    low, high = np.percentile(image[body], [1, 99])
    x = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-6), 0, 1)
    x = _without(x, labels == hidden, random)
    y = 1 - x + 0.35 * np.sin(2 * np.pi * x)  # not monotonous: two tissues may look alike
    y = _coarse(y * body)
    y = np.hypot(y + random.normal(0, NOISE, y.shape), random.normal(0, NOISE, y.shape))  # Rician
    return (1000 * y).astype(np.float32)


def _body(image: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Everything but air, where there is much of it (as around a CT)."""
    low, high = np.percentile(image, [1, 99])
    air = image < low + AIR * (high - low)
    return ~air if air.mean() > MUCH_AIR else np.ones(image.shape, bool)


def _without(x: NDArray[np.float64], mask: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.float64]:
    """Fills a structure with what surrounds it, texture included."""
    if not mask.any():
        return x
    outside = (~mask).astype(np.float64)
    weight = ndimage.gaussian_filter(outside, AROUND)
    around = ndimage.gaussian_filter(x * outside, AROUND) / np.maximum(weight, 1e-6)
    ring = ndimage.binary_dilation(mask, iterations=round(AROUND)) & ~mask
    texture = random.normal(0, (x - ndimage.gaussian_filter(x, 1.0))[ring].std(), x.shape)
    share = ndimage.gaussian_filter(mask.astype(np.float64), SOFT)
    filled: NDArray[np.float64] = x * (1 - share) + (around + texture) * share
    return filled


def _coarse(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Averages blocks of voxels and interpolates back."""
    padding = [(0, -size % COARSE) for size in y.shape]
    padded = np.pad(y, padding, mode="edge")
    blocks = padded.reshape([n for size in padded.shape for n in (size // COARSE, COARSE)])
    small = blocks.mean(axis=tuple(range(1, 2 * y.ndim, 2)))
    back = ndimage.zoom(small, COARSE, order=1, mode="nearest", grid_mode=True)
    result: NDArray[np.float64] = back[tuple(slice(size) for size in y.shape)]
    return result
