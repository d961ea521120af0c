"""Simulates registered modalities of a real image: other contrast, coarser, noisier, one structure unseen in each.

Fixed before any method was run on them. Everything that is made with it says "simulated modality".
"""

from __future__ import annotations

import os
import zlib

import numpy as np
import SimpleITK as sitk
from images import ENDING, like, write_image
from numpy.typing import NDArray
from scipy import ndimage
from settings import Setting, read_json

AROUND = 3.0  # voxels, of the surroundings that fill a hidden structure
SOFT = 0.7  # voxels, of its blurred border
WIDE = 3  # voxels around a structure with whose surroundings it is blended
COARSE = 2  # how much coarser, along each axis
IN_PLANE = 0.5  # voxels, of a blur in place of that
AIR, MUCH_AIR = 0.1, 0.3  # of the grey scale; of the voxels
NOISE = 0.05  # standard deviation, of a grey scale from 0 to 1
FINE_NOISE = 0.03  # of the first modality

Image = NDArray[np.float32]


def write_modalities(setting: Setting) -> None:
    """Makes the simulated modality of every image of a benchmark that is not there yet, beside a link to the real one.

    Where the protocol hides a structure in the first modality, too, that one is simulated as well.
    """
    folder, rule = setting["folder"], setting["second_modality"]
    source, target = setting.data_folder(folder), setting.images(folder)
    target.mkdir(parents=True, exist_ok=True)
    integers = read_json(source / "dataset.json")["labels"]
    for case in (case for cases in setting["cases"].values() for case in cases):
        first, second = (target / f"{case}_{n:04d}{ENDING}" for n in range(2))
        if second.is_file():
            continue
        image = sitk.ReadImage(str(source / "imagesTr" / first.name))
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(source / "labelsTr" / f"{case}{ENDING}")))
        voxels, hidden = sitk.GetArrayFromImage(image), integers[rule["hidden"]]
        if "hidden_in_first" in rule:
            both = integers[rule["hidden_in_first"]], hidden
            made = two_modalities(voxels, labels, both, rule["soft"], case, enhanced=rule.get("enhanced", 0.0))
            write_image(like(image, made[0]), first)
        else:
            made = (voxels, second_modality(voxels, labels, hidden, case))
            first.unlink(missing_ok=True)
            os.symlink(source / "imagesTr" / first.name, first)
        write_image(like(image, made[1]), second)  # last: it says that both are there


def second_modality(image: NDArray[np.floating], labels: NDArray[np.integer], hidden: int, key: str) -> Image:
    """Returns the simulated modality, with a grey scale up to about 1000.

    Args:
        image: (Z, Y, X) real image.
        labels: its label map.
        hidden: integer of the structure that the second modality cannot show.
        key: of the case; the noise is drawn from it.
    """
    random = np.random.default_rng(zlib.crc32(key.encode()))
    x, body = _grey(image)
    return _other_contrast(_without(x, labels == hidden, random), body, random)


def two_modalities(
    image: NDArray[np.floating],
    labels: NDArray[np.integer],
    hidden: tuple[int, int],
    soft: float,
    key: str,
    *,
    enhanced: float = 0.0,
) -> tuple[Image, Image]:
    """Returns two modalities, each of which lacks the contrast of another structure to its surroundings.

    Nothing is filled in: a smooth field is taken away, and what a structure's own texture is stays, so that neither
    modality shows where the label ends, nor both by where they differ.

    With ``enhanced``, each shows brightly what the other one hides, as two moments of the first pass of a contrast
    agent through a heart do: it is in the right ventricle and not in the left one, later the other way round. The
    second one then is blurred in plane, in place of blocks of voxels that average over two slices.

    Args:
        image: (Z, Y, X) real image.
        labels: its label map.
        hidden: integers of the structures that the first and the second modality do not show.
        soft: voxels, how blurred the borders of structures are in the image: 0.9 of the hippocampus, 0.5 of the heart
            leave the smallest step there, by the images of six patients each.
        key: of the case; the noise is drawn from it.
        enhanced: what the agent adds, of a grey scale from 0 to 1.
    """
    random = np.random.default_rng(zlib.crc32(f"{key}, two".encode()))
    x, body = _grey(image)
    masks = [labels == structure for structure in hidden]
    without = [_blended(x, mask, soft) for mask in masks]
    first, bright = without[0] * body, None
    if enhanced:
        without = [_blended(y, mask, soft) for y, mask in zip(without, reversed(masks), strict=True)]
        agent = [enhanced * ndimage.gaussian_filter(mask.astype(np.float64), soft) for mask in reversed(masks)]
        first, bright = without[0] * body + agent[0], agent[1]
    fine = _noisy(first, FINE_NOISE, random)
    return (1000 * fine).astype(np.float32), _other_contrast(without[1], body, random, bright)


def _grey(image: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns an image between 0 and 1, and where its body is."""
    body = _body(image)
    low, high = np.percentile(image[body], [1, 99])
    return np.clip((image.astype(np.float64) - low) / max(high - low, 1e-6), 0, 1), body


def _other_contrast(
    x: NDArray[np.float64],
    body: NDArray[np.bool_],
    random: np.random.Generator,
    bright: NDArray[np.float64] | None = None,
) -> Image:
    y = (1 - x + 0.35 * np.sin(2 * np.pi * x)) * body  # not monotonous: two tissues may look alike
    seen = _coarse(y) if bright is None else ndimage.gaussian_filter(y + bright, (0, IN_PLANE, IN_PLANE))
    return (1000 * _noisy(seen, NOISE, random)).astype(np.float32)


def _noisy(y: NDArray[np.float64], noise: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Adds Rician noise."""
    found: NDArray[np.float64] = np.hypot(y + random.normal(0, noise, y.shape), random.normal(0, noise, y.shape))
    return found


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


def _blended(x: NDArray[np.float64], mask: NDArray[np.bool_], soft: float) -> NDArray[np.float64]:
    """Takes the contrast of a structure to its surroundings away by a smooth field; its texture stays."""
    if not mask.any():
        return x
    ring = ndimage.binary_dilation(mask, iterations=WIDE) & ~mask
    contrast = _level(x, mask) - _level(x, ring)
    share = ndimage.gaussian_filter(mask.astype(np.float64), soft)
    return np.clip(x - share * contrast, 0, 1)


def _level(x: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Local mean over a part of the image, smooth and known everywhere."""
    weight = where.astype(np.float64)
    near, far = (
        [ndimage.gaussian_filter(values, width) for values in (x * weight, weight)] for width in (AROUND, 4 * AROUND)
    )
    overall = float(x[where].mean())
    least = 1e-3
    found: NDArray[np.float64] = (near[0] + least * (far[0] + least * overall) / (far[1] + least)) / (near[1] + least)
    return found


def _coarse(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Averages blocks of voxels and interpolates back."""
    padding = [(0, -size % COARSE) for size in y.shape]
    padded = np.pad(y, padding, mode="edge")
    blocks = padded.reshape([n for size in padded.shape for n in (size // COARSE, COARSE)])
    small = blocks.mean(axis=tuple(range(1, 2 * y.ndim, 2)))
    back = ndimage.zoom(small, COARSE, order=1, mode="nearest", grid_mode=True)
    result: NDArray[np.float64] = back[tuple(slice(size) for size in y.shape)]
    return result
