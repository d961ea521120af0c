"""Slices with the drawn and the predicted outline: a typical case of each label, and the worst one."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases
from nnunet_mutual.errors import MutualError
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.training import Training

DRAWN, PREDICTED = "#56B4E9", "#E69F00"  # Okabe and Ito's sky blue and orange
MOST_LABELS = 16
ABDOMINAL_WINDOW = (-160.0, 240.0)  # Hounsfield units
LEAST_MM = 60.0  # side of the square that is shown
AROUND = 1.8  # shown, of the extent of the organ
SIDE = 2.3  # inches


@dataclass(frozen=True)
class Pick:
    """A case of a label worth looking at; ``rank`` is "typical", "worst" or "the only case"."""

    label: str
    key: str
    source: str
    rank: str
    dice: float


@dataclass(frozen=True)
class _Volume:
    """Voxels (Z, Y, X) in the orientation that readers expect, spacing in mm."""

    voxels: np.ndarray
    spacing: tuple[float, ...]


def picks(scores: pd.DataFrame, labels: list[str]) -> list[Pick]:
    """Chooses for each label the case nearest to its median Dice and the one with the lowest.

    Args:
        scores: of one network.
        labels: in the order of the page; of more than 16, those with the lowest median.
    """
    scored = scores[scores.dice.notna()]
    medians = scored.groupby("label").dice.median()
    there = [label for label in labels if label in medians.index]
    chosen = sorted(there, key=lambda label: float(medians[label]))[:MOST_LABELS]
    found: list[Pick] = []
    for label in (label for label in there if label in chosen):
        rows = scored[scored.label == label].sort_values(["dice", "case"])
        better = rows.iloc[1:] if len(rows) > 1 else rows
        nearest = (better.dice - medians[label]).abs().idxmin()
        usual = "typical" if len(rows) > 1 else "the only case"
        for rank, row in ((usual, rows.loc[nearest]), ("worst", rows.iloc[0])):
            if not any(pick.label == label and pick.key == row.case for pick in found):
                found.append(Pick(label, str(row.case), str(row.source), rank, float(row.dice)))
    return found


def raw_cases(training: Training) -> dict[str, CaseFiles]:
    """Returns the files of the raw dataset, nothing where it is not at hand or incomplete."""
    if training.folders.raw is None:
        return {}
    try:
        return training_cases(training.folders.raw, read_dataset_json(training.folders.raw))[0]
    except MutualError:
        return {}


def overlays(
    training: Training, chosen: list[Pick], validation: Path, names: Identities, network: str = ""
) -> Iterator[tuple[str, str]]:
    """Draws chosen cases.

    Args:
        training: whose images these are.
        chosen: from :func:`picks`.
        validation: folder of the predictions.
        names: of the cases.
        network: the modality group whose first channel is shown; "" for the first channel of all.

    Yields:
        An ``img`` element and its caption; nothing for a case whose files are not there.
    """
    files, references = raw_cases(training), training.references
    ending = training.dataset_json["file_ending"]
    ignore = training.dataset_json["labels"].get("ignore")
    channel = training.table.channels.index(training.table.modality_groups.get(network, training.table.channels)[0])
    for pick in chosen:
        image_file = files[pick.key].images.get(channel) if pick.key in files else None
        maps = [folder / f"{pick.key}{ending}" for folder in (references or validation, validation)]
        if image_file is None or references is None or not all(path.is_file() for path in (image_file, *maps)):
            continue
        image, drawn, predicted = (_read(path) for path in (image_file, *maps))
        if not image.voxels.shape == drawn.voxels.shape == predicted.voxels.shape:
            continue
        values = training.table.values[pick.label]
        masks = [np.isin(volume.voxels, values) for volume in (drawn, predicted)]
        if isinstance(ignore, int):
            masks = [mask & (drawn.voxels != ignore) for mask in masks]
        is_ct = training.table.channels[channel].casefold() == "ct"
        caption = f"{pick.label}, {pick.rank}: Dice {pick.dice:.2f}, {names.case(pick.key)} ({pick.source})"
        picture, in_slice = _draw(image, masks[0], masks[1], is_ct, caption)
        yield picture, caption + in_slice


def _read(path: Path) -> _Volume:
    image = sitk.ReadImage(str(path))
    if image.GetDimension() == 4:  # channels in one file
        image = image[:, :, :, 0]
    if image.GetDimension() == 3:
        image = sitk.DICOMOrient(image, "LPS")  # patient's right on the left, face up
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:  # a photograph
        voxels = voxels.mean(-1)
    spacing = image.GetSpacing()[::-1]
    return _Volume(voxels, spacing) if voxels.ndim == 3 else _Volume(voxels[None], (math.inf, *spacing))


def _draw(image: _Volume, drawn: np.ndarray, predicted: np.ndarray, is_ct: bool, caption: str) -> tuple[str, str]:
    axis = int(np.argmax(image.spacing))  # the plane in which the slices were taken
    others = tuple(n for n in range(3) if n != axis)
    wrong = (drawn != predicted).sum(others)
    index = int(np.argmax(wrong if wrong.any() else drawn.sum(others)))
    plane, truth, guess = (np.take(volume, index, axis) for volume in (image.voxels, drawn, predicted))
    if axis != 0:
        plane, truth, guess = plane[::-1], truth[::-1], guess[::-1]  # head up
    spacing = tuple(image.spacing[n] for n in others)
    window = _around(truth | guess, spacing)
    plane, truth, guess = (np.asarray(values[window], float) for values in (plane, truth, guess))
    low, high = ABDOMINAL_WINDOW if is_ct and image.voxels.min() < -200 else np.percentile(plane, [0.5, 99.5])
    height, width = (n * s for n, s in zip(plane.shape, spacing, strict=True))
    figure = Figure(figsize=(SIDE, SIDE * height / width), facecolor="black")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    extent = (0.0, width, height, 0.0)
    ax.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent, interpolation="bilinear")
    rows, columns = ((np.arange(n) + 0.5) * s for n, s in zip(plane.shape, spacing, strict=True))
    edge: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=3, foreground="black", alpha=0.5)]
    for mask, colour, line in ((truth, DRAWN, "solid"), (guess, PREDICTED, "dashed")):
        if mask.any() and min(mask.shape) > 1:
            lines = ax.contour(columns, rows, mask, levels=[0.5], colors=colour, linestyles=line, linewidths=1.5)
            lines.set_path_effects(edge)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    code = base64.b64encode(stream.getvalue()).decode()
    missed, added = (int((a & ~b).sum()) for a, b in ((truth > 0, guess > 0), (guess > 0, truth > 0)))
    said = (
        f"{caption}. In this slice {missed} voxels are missed and {added} added, {int((truth > 0).sum())} were drawn."
    )
    shown = [name for name, mask in (("drawn", truth), ("predicted", guess)) if mask.any()]
    in_slice = f"; only {shown[0]} in this slice" if len(shown) == 1 else ""
    return f'<img src="data:image/png;base64,{code}" alt="{html.escape(said, quote=True)}">', in_slice


def _around(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[slice, ...]:
    """Returns a square in mm around a mask (Y, X), within the image."""
    found = [np.flatnonzero(mask.any(1 - axis)) for axis in (0, 1)]
    if not found[0].size:
        return (slice(None), slice(None))
    extents = [(where[-1] - where[0] + 1) * s for where, s in zip(found, spacing, strict=True)]
    side = max(LEAST_MM, AROUND * max(extents))
    window = []
    for where, s, n in zip(found, spacing, mask.shape, strict=True):
        half, middle = side / s / 2, (where[0] + where[-1] + 1) / 2
        window.append(slice(max(0, int(middle - half)), min(n, int(np.ceil(middle + half)))))
    return tuple(window)
