"""Pictures of one pseudo label: three planes through it, without and with outlines."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import ndimage

# Okabe and Ito's colours, which colour-blind readers can tell apart; outlines differ in line style as well.
CANDIDATE = "#E69F00"
DRAWN = ("#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#0072B2")
_MARGIN_MM = 30.0
_RIM = 1  # voxels around the candidate whose intensities, with its own, should be told apart


@dataclass(frozen=True)
class Scene:
    """What is shown, all turned alike (see orientation.py).

    Attributes:
        image: (Z, Y, X).
        candidate: (Z, Y, X) bool.
        drawn: name of each annotated label -> (Z, Y, X) bool.
        spacing: mm (Z, Y, X).
        oriented: whether the sides of the patient are known.
    """

    image: np.ndarray
    candidate: np.ndarray
    drawn: Mapping[str, np.ndarray]
    spacing: tuple[float, ...]
    oriented: bool


@dataclass(frozen=True)
class Plane:
    """One of the planes in which physicians look at images, of volumes (Z, Y, X) that are turned to L, P, S.

    Attributes:
        axis: that a slice leaves out.
        name: of the plane.
        sides: letters for left, right, top and bottom of the picture.
    """

    axis: int
    name: str
    sides: tuple[str, str, str, str]


PLANES = (
    Plane(0, "axial", ("R", "L", "A", "P")),
    Plane(1, "coronal", ("R", "L", "H", "F")),
    Plane(2, "sagittal", ("A", "P", "H", "F")),
)


def draw(scene: Scene) -> str:
    """Returns a PNG as the content of an HTML image: ``data:image/png;base64,...``.

    Each plane is the slice with most of the candidate; of an empty candidate, the middle of the image.
    """
    planes = PLANES if min(scene.image.shape) > 1 else PLANES[:1]
    box = _box(scene)
    low, high = _window(scene.image[box], scene.candidate[box])
    figure = Figure(figsize=(3.6 * len(planes), 7.3), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(planes), squeeze=False)
    for column, plane in zip(axes.T, planes, strict=True):
        index = _fullest(scene.candidate, plane.axis)
        picture = _cut(scene.image, box, plane.axis, index)
        height, width = (n * s for n, s in zip(picture.shape, np.delete(scene.spacing, plane.axis), strict=True))
        for ax in column:
            ax.imshow(picture, cmap="gray", vmin=low, vmax=high, extent=(0, width, 0, height))
            ax.set_axis_off()
            if scene.oriented:
                write_sides(ax, plane.sides)
        drawn = list(scene.drawn.values())
        for number, mask in enumerate(drawn):
            colour = DRAWN[number % len(DRAWN)]
            outline(column[1], _cut(mask, box, plane.axis, index), (width, height), colour, "dashed", 1.5)
        candidate = _cut(scene.candidate, box, plane.axis, index)
        outline(column[1], candidate, (width, height), CANDIDATE, "solid", 1.8)
        name = plane.name if scene.oriented else f"plane {plane.axis + 1}"
        column[0].set_title(f"{name}, slice {index + 1} of {scene.image.shape[plane.axis]}", color="white", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _fullest(mask: np.ndarray, axis: int) -> int:
    areas = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    return int(areas.argmax()) if areas.any() else mask.shape[axis] // 2


def _window(image: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
    """Intensities that become black and white: those in and around the candidate are in the middle."""
    near = ndimage.binary_dilation(candidate, iterations=_RIM)
    low, high = np.percentile(image[near] if near.any() else image, (5, 95))
    width = max(float(high - low), 1e-6)
    return float(low) - width / 2, float(high) + width / 2


def _box(scene: Scene) -> tuple[slice, ...]:
    """The candidate with as much around it as shows where in the body it is; everything if it is empty."""
    found = np.nonzero(scene.candidate)
    if not len(found[0]):
        return tuple(slice(0, n) for n in scene.candidate.shape)
    sizes = [(i.max() - i.min() + 1) * s for i, s in zip(found, scene.spacing, strict=True)]
    margin = max(_MARGIN_MM, max(sizes) / 2)
    return tuple(
        slice(max(0, int(i.min() - margin / s)), int(np.ceil(i.max() + margin / s)) + 1)
        for i, s in zip(found, scene.spacing, strict=True)
    )


def _cut(volume: np.ndarray, box: tuple[slice, ...], axis: int, index: int) -> np.ndarray:
    """Returns a plane of a box with the head or the front up."""
    place: list[slice | int] = list(box)
    place[axis] = index
    plane = volume[tuple(place)]
    return plane if axis == 0 else plane[::-1]


def outline(ax: Axes, mask: np.ndarray, size: tuple[float, float], colour: str, style: str, width: float) -> None:
    """Draws the outline of a mask (rows, columns), the first row on top, into a picture of a size (width, height)."""
    if not mask.any():
        return
    padded = np.pad(mask.astype(np.float32), 1)  # outlines close at the border of the picture
    rows, columns = mask.shape
    x = (np.arange(-1, columns + 1) + 0.5) * size[0] / columns
    y = size[1] - (np.arange(-1, rows + 1) + 0.5) * size[1] / rows
    lines = ax.contour(x, y, padded, levels=[0.5], colors=[colour], linestyles=[style], linewidths=[width])
    lines.set_path_effects([withStroke(linewidth=width + 1.5, foreground="black")])  # seen on bright tissue too
    ax.set_xlim(0, size[0])
    ax.set_ylim(0, size[1])


def write_sides(ax: Axes, sides: tuple[str, str, str, str]) -> None:
    """Writes which side of the patient is where, see :class:`Plane`."""
    for text, (x, y) in zip(sides, ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02)), strict=True):
        horizontal = {0.02: "left", 0.98: "right"}.get(x, "center")
        vertical = {0.98: "top", 0.02: "bottom"}.get(y, "center")
        side = ax.text(x, y, text, transform=ax.transAxes, color="white", fontsize=9, ha=horizontal, va=vertical)
        side.set_path_effects([withStroke(linewidth=2, foreground="black")])  # seen on bright tissue too
