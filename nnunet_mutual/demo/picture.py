"""The picture of the demo: image, truth and predictions side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_mutual.demo.anatomy import LABELS, SHAPE, SPACING
from nnunet_mutual.demo.phantoms import ENDING, SITES
from nnunet_mutual.disk.writing import written

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
    "liver": "#D55E00",
    "spleen": "#CC79A7",
    "right_kidney": "#0072B2",
    "left_kidney": "#009E73",
    "aorta": "#56B4E9",
    "spine": "#F0E442",
}
WINDOW = (-160.0, 240.0)  # Hounsfield units, the usual abdominal window
OPACITY = 0.55
FINER = 4  # the picture's pixels per voxel, so that outlines are smooth to look at


def draw_comparison(path: Path, *, images: Path, truth: Path, predictions: Mapping[str, Path]) -> None:
    """Draws one test case of each site, axial and coronal.

    Args:
        path: PNG to write.
        images: folder of the test images.
        truth: folder of the full label maps.
        predictions: title of a column -> folder of label maps.
    """
    columns: dict[str, Path | None] = {"image": None, "truth": truth, **predictions}
    rows = [(site, view) for site in SITES for view in ("axial", "coronal")]
    figure = Figure(figsize=(3.3 * len(columns), 11.2), facecolor="white")
    FigureCanvasAgg(figure)
    heights = [_extent(view)[1] / _extent(view)[0] for _, view in rows]
    axes = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    for title, ax in zip(columns, axes[0], strict=True):
        ax.set_title(title, fontsize=11)
    for line, (site, view) in zip(axes, rows, strict=True):
        key = sorted(file.name.removesuffix(ENDING) for file in truth.glob(f"{site.name}_*{ENDING}"))[0]
        image, full = _read(images / f"{key}_0000{ENDING}"), _read(truth / (key + ENDING))
        index = _telling_slice(full, view)
        for ax, folder in zip(line, columns.values(), strict=True):
            labels = None if folder is None else _read(folder / (key + ENDING))
            ax.imshow(_pixels(image, labels, view, index), extent=(0, _extent(view)[0], 0, _extent(view)[1]))
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(f"{site.name}, {view}", fontsize=10)
    figure.legend(
        handles=[Patch(color=COLOURS[label], label=f"{label}  ({_annotator(label)})") for label in LABELS],
        loc="lower center",
        ncol=len(LABELS) // 2,
        frameon=False,
        fontsize=10,
        title="organ  (annotated by)",
    )
    figure.suptitle(
        "Look for organs of the truth that are missing or wrong in the third column, above all those that\n"
        "the image's hospital did not draw itself. Generated images, not patients; a patient's right is on the left.",
        fontsize=12,
    )
    figure.subplots_adjust(left=0.03, right=0.995, top=0.9, bottom=0.085, wspace=0.03, hspace=0.05)
    with written(path, ending=".png") as temporary:
        figure.savefig(temporary, dpi=110)


def _annotator(label: str) -> str:
    return next(site.name for site in SITES if label in site.annotated)


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _extent(view: str) -> tuple[float, float]:
    """Returns width and height of a view in mm."""
    z, y, x = (n * s for n, s in zip(SHAPE, SPACING, strict=True))
    return (x, y) if view == "axial" else (x, z)


def _slice(volume: np.ndarray, view: str, index: int) -> np.ndarray:
    return volume[index] if view == "axial" else volume[::-1, index]  # head up


def _telling_slice(truth: np.ndarray, view: str) -> int:
    """Returns the slice that shows most organs, each by at least a few voxels."""
    axis = 0 if view == "axial" else 1
    scores = [
        sum(min(int(np.count_nonzero(cut == value)), 12) for value in LABELS.values())
        for cut in np.moveaxis(truth, axis, 0)
    ]
    return int(np.argmax(scores))


def _pixels(image: np.ndarray, labels: np.ndarray | None, view: str, index: int) -> np.ndarray:
    """Returns an RGB picture of a slice with coloured labels."""
    low, high = WINDOW
    grey = _enlarge(_slice(image, view, index).astype(np.float32), view, sitk.sitkBSpline)
    rgb = np.repeat(np.clip((grey - low) / (high - low), 0, 1)[..., None], 3, axis=-1)
    if labels is None:
        return rgb
    cut = _slice(labels, view, index)
    shares = [_enlarge((cut == value).astype(np.float32), view, sitk.sitkLinear) for value in (0, *LABELS.values())]
    winner = np.argmax(shares, axis=0)
    for name, value in LABELS.items():
        at = winner == list(LABELS.values()).index(value) + 1
        rgb[at] = (1 - OPACITY) * rgb[at] + OPACITY * np.array(to_rgb(COLOURS[name]))
    return rgb


def _enlarge(plane: np.ndarray, view: str, interpolator: Any) -> np.ndarray:
    """Resamples a plane to square pixels of a fraction of a voxel."""
    spacing: Sequence[float] = SPACING[1:] if view == "axial" else (SPACING[0], SPACING[2])
    fine = min(spacing) / FINER
    source = sitk.GetImageFromArray(np.ascontiguousarray(plane))
    source.SetSpacing(spacing[::-1])
    size = [round(n * s / fine) for n, s in zip(plane.shape[::-1], spacing[::-1], strict=True)]
    origin = [(fine - s) / 2 for s in spacing[::-1]]
    filled = sitk.Resample(
        source, size, sitk.Transform(), interpolator, origin, [fine, fine], [1.0, 0.0, 0.0, 1.0], 0.0, sitk.sitkFloat32
    )
    return sitk.GetArrayFromImage(filled)
