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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.review.figures import PLANES, Plane, outline, write_sides
from nnunet_mutual.report.blocks import short
from nnunet_mutual.report.identities import Identities
from nnunet_mutual.report.svg import BRIGHT
from nnunet_mutual.report.training import Training

DRAWN = "white"  # predicted: the colour of the label
ORIENTED = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")  # formats that say how the patient lies
THICK = 1.5  # times the size of a voxel within the plane, from which on slices have a plane of acquisition
MOST_LABELS = 16
ABDOMINAL_WINDOW = (-160.0, 240.0)  # Hounsfield units
LEAST_MM = 140.0  # side of the square that is shown
AROUND = 2.5  # shown, of the extent of the organ
SIDE = 3.2  # inches


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
    """An image in the orientation that readers expect.

    Attributes:
        voxels: (Z, Y, X).
        spacing: mm (Z, Y, X).
        turned: whether each axis runs against that of the file.
        oriented: whether the file says how the patient lies.
    """

    voxels: np.ndarray
    spacing: tuple[float, ...]
    turned: tuple[bool, ...] = (False, False, False)
    oriented: bool = False


@dataclass(frozen=True)
class _Sight:
    """What is outlined: the masks (Z, Y, X) of a label that were drawn and predicted, and its colour."""

    drawn: np.ndarray
    predicted: np.ndarray
    colour: str


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
    """Draws chosen cases: the axial slice with most wrong voxels, and one in the plane of the acquisition, if another.

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
    channel = training.table.channels.index(training.table.modality_groups.get(network, training.table.channels)[0])
    for pick in chosen:
        image_file = files[pick.key].images.get(channel) if pick.key in files else None
        maps = [folder / f"{pick.key}{ending}" for folder in (references or validation, validation)]
        if image_file is None or references is None or not all(path.is_file() for path in (image_file, *maps)):
            continue
        try:
            image, drawn, predicted = (_read(path) for path in (image_file, *maps))
        except RuntimeError:  # damaged, or with sheared axes, which nnU-Net's other readers read and SimpleITK does not
            continue
        if not image.voxels.shape == drawn.voxels.shape == predicted.voxels.shape:
            continue
        values = training.table.values[pick.label]
        masks = [np.isin(volume.voxels, values) for volume in (drawn, predicted)]
        if training.table.ignore is not None:
            masks = [mask & (drawn.voxels != training.table.ignore) for mask in masks]
        is_ct = training.table.channels[channel].casefold() == "ct"
        colour = BRIGHT[training.table.labels.index(pick.label) % len(BRIGHT)]
        caption = f"{pick.label}, {pick.rank}: Dice {pick.dice:.2f}, {names.case(pick.key)} ({pick.source})"
        for plane in _planes(image):
            picture, said = _draw(image, plane, _Sight(masks[0], masks[1], colour), is_ct, caption)
            yield picture, f"{caption}; {said}"


def _read(path: Path) -> _Volume:
    stored = image = sitk.ReadImage(str(path))
    if image.GetDimension() == 4:  # channels in one file
        stored = image = image[:, :, :, 0]
    turned: tuple[bool, ...] = (False,) * 3
    if image.GetDimension() == 3:
        image = sitk.DICOMOrient(image, "LPS")  # patient's right on the left, face up
        turned = tuple(_turned(stored, image, axis) for axis in (2, 1, 0))
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:  # a photograph
        voxels = voxels.mean(-1)
    spacing = image.GetSpacing()[::-1]
    if voxels.ndim == 3:
        return _Volume(voxels, spacing, turned, path.name.endswith(ORIENTED))
    return _Volume(voxels[None], (math.inf, *spacing))


def _turned(stored: sitk.Image, image: sitk.Image, axis: int) -> bool:
    """Whether an axis (x, y, z) of the turned image runs against the axis of the file that it came from."""
    ends = []
    for index in (0, image.GetSize()[axis] - 1):
        place = [0, 0, 0]
        place[axis] = index
        ends.append(stored.TransformPhysicalPointToIndex(image.TransformIndexToPhysicalPoint(place)))
    steps = [after - before for before, after in zip(*ends, strict=True)]
    return max(steps, key=abs) < 0


def _planes(image: _Volume) -> list[Plane]:
    """Axial first, then the plane in which thick slices were taken, if that is another one."""
    if image.voxels.shape[0] == 1:
        return [PLANES[0]]
    thickest = int(np.argmax(image.spacing))
    taken = [PLANES[thickest]] if thickest and max(image.spacing) > THICK * min(image.spacing) else []
    return [PLANES[0], *taken]


def _draw(image: _Volume, plane: Plane, seen: _Sight, is_ct: bool, caption: str) -> tuple[str, str]:
    """Returns an ``img`` element and what a reader must know of the slice."""
    axis = plane.axis
    others = tuple(n for n in range(3) if n != axis)
    wrong = (seen.drawn != seen.predicted).sum(others)
    index = int(np.argmax(wrong if wrong.any() else seen.drawn.sum(others)))
    slices = [np.take(volume, index, axis) for volume in (image.voxels, seen.drawn, seen.predicted)]
    if axis != 0:
        slices = [one[::-1] for one in slices]  # head up
    spacing = tuple(image.spacing[n] for n in others)
    around = _around(slices[1] | slices[2], spacing)
    shown, truth, guess = (np.asarray(one[around], float) for one in slices)
    hounsfield = is_ct and image.voxels.min() < -200
    low, high = ABDOMINAL_WINDOW if hounsfield else np.percentile(shown, [0.5, 99.5])
    height, width = (n * s for n, s in zip(shown.shape, spacing, strict=True))
    figure = Figure(figsize=(SIDE, SIDE * height / width), facecolor="black")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    extent = (0.0, width, 0.0, height)
    ax.imshow(shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent, interpolation="bilinear")
    for mask, colour, line in ((truth, DRAWN, "solid"), (guess, seen.colour, "dashed")):
        outline(ax, mask, (width, height), colour, line, 1.4)
    if image.oriented:
        write_sides(ax, plane.sides)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    code = base64.b64encode(stream.getvalue()).decode()
    missed, added = (int((a & ~b).sum()) for a, b in ((truth > 0, guess > 0), (guess > 0, truth > 0)))
    place = _place(image, plane, index)
    window = f"window {short(low)} to {short(high)}{' HU' if hounsfield else ''}"
    words = (
        f"{caption}, {place}. In this slice {missed} voxels are missed and {added} added, "
        f"{int((truth > 0).sum())} were drawn."
    )
    drawn = [name for name, mask in (("drawn", truth), ("predicted", guess)) if mask.any()]
    only = f"; only {drawn[0]} in this slice" if len(drawn) == 1 else ""
    return (
        f'<img src="data:image/png;base64,{code}" alt="{html.escape(words, quote=True)}">',
        f"{place}, {window}{only}",
    )


def _place(image: _Volume, plane: Plane, index: int) -> str:
    """Plane and number of a slice, counted from 1 as it lies in the file."""
    number = image.voxels.shape[plane.axis]
    if number == 1:
        return "the whole image"
    name = plane.name if image.oriented else f"plane {plane.axis + 1}"
    return f"{name} slice {number - index if image.turned[plane.axis] else index + 1} of {number}"


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
