r"""The metrics of one label in one case.

With the predicted mask P, the drawn mask R and the volume V of a voxel:

.. math::
    \text{Dice} = \frac{2 |P \cap R|}{|P| + |R|}, \quad
    \text{IoU} = \frac{|P \cap R|}{|P \cup R|}, \quad
    \text{volume error} = V (|P| - |R|)

Surface Dice at tolerance t is the share of both surfaces, by area, that lies within t of the other one; HD95 is the
larger of the two 95th percentiles of the distances from surface voxels to the other surface
(:mod:`nnunet_mutual.evaluation.surfaces`).

What an empty mask gives:

==========================  =======================  =====================  ================
P, R                        Dice, IoU, surface Dice  HD95                   volume error
==========================  =======================  =====================  ================
both empty (absent)         NaN                      NaN                    NaN
only P is empty (missed)    0                        diagonal of the image  - volume of R
only R is empty (invented)  0                        diagonal of the image  volume of P
==========================  =======================  =====================  ================

NaN is left out of every mean: a label that is absent and not predicted neither raises nor lowers it. The diagonal is
the largest distance that the image allows, so that a missed organ does not improve a mean distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from nnunet_mutual.errors import MutualError, meant
from nnunet_mutual.evaluation.masks import dice
from nnunet_mutual.evaluation.surfaces import hd95, surface_dice

DICE, IOU = "Dice", "IoU"
SURFACE_DICE, HD95 = "surface_dice", "hd95_mm"
VOLUME, REFERENCE_VOLUME = "volume_ml", "reference_volume_ml"
VOLUME_ERROR, RELATIVE_VOLUME_ERROR = "volume_error_ml", "volume_error_percent"
SURFACE = (SURFACE_DICE, HD95)
TOLERANCE = 1.0  # mm
# Of a label that is absent in the reference and in the prediction, where that must be compared with another prediction.
PERFECT = {DICE: 1.0, IOU: 1.0, SURFACE_DICE: 1.0, HD95: 0.0}


def measure(
    predicted: NDArray[np.bool_],
    drawn: NDArray[np.bool_],
    spacing: Sequence[float],
    *,
    tolerance: float | None,
    voxel_ml: float | None,
) -> dict[str, float]:
    """Returns all metrics of one label in one case.

    Args:
        predicted: (Z, Y, X) mask; Z = 1 for a 2d image.
        drawn: (Z, Y, X) mask of the reference.
        spacing: size of a voxel (Z, Y, X) in mm.
        tolerance: of surface Dice in mm; None leaves the surface metrics out.
        voxel_ml: volume of a voxel in millilitres; None leaves the volumes out, as of 2d images.

    Returns:
        Metric -> value. An image without spacing (png) is measured in pixels.
    """
    found = {DICE: dice(predicted, drawn), IOU: intersection_over_union(predicted, drawn)}
    if tolerance is not None:
        found |= surface_metrics(predicted, drawn, spacing, tolerance=tolerance)
    if voxel_ml is not None:
        found |= volumes(predicted, drawn, voxel_ml)
    return found


def intersection_over_union(predicted: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> float:
    """Returns the Jaccard index of two masks of one shape, NaN if both are empty."""
    union = int(np.count_nonzero(predicted | drawn))
    return int(np.count_nonzero(predicted & drawn)) / union if union else math.nan


def volumes(predicted: NDArray[np.bool_], drawn: NDArray[np.bool_], voxel_ml: float) -> dict[str, float]:
    """Returns the volumes of two masks and the error, in ml and in percent of the drawn volume.

    The error is NaN if both are empty, in percent also if nothing was drawn.
    """
    ours, theirs = (int(np.count_nonzero(mask)) * voxel_ml for mask in (predicted, drawn))
    return {
        VOLUME: ours,
        REFERENCE_VOLUME: theirs,
        VOLUME_ERROR: ours - theirs if ours or theirs else math.nan,
        RELATIVE_VOLUME_ERROR: 100 * (ours - theirs) / theirs if theirs else math.nan,
    }


def surface_metrics(
    predicted: NDArray[np.bool_], drawn: NDArray[np.bool_], spacing: Sequence[float], *, tolerance: float
) -> dict[str, float]:
    """Returns surface Dice and HD95 of two masks; a mask ends at the border of the image as it does inside.

    One slice is measured in its plane. The arguments are those of :func:`measure`.
    """
    if predicted.shape[0] == 1:
        predicted, drawn, spacing = predicted[0], drawn[0], spacing[1:]
    some = predicted.any(), drawn.any()
    if not all(some):
        diagonal = math.hypot(*(n * size for n, size in zip(drawn.shape, spacing, strict=True)))
        return dict.fromkeys(SURFACE, math.nan) if not any(some) else {SURFACE_DICE: 0.0, HD95: diagonal}
    box = _bounding_box(predicted | drawn)
    predicted, drawn = predicted[box], drawn[box]
    return {
        SURFACE_DICE: surface_dice(predicted, drawn, spacing, tolerance),
        HD95: hd95(predicted, drawn, spacing),
    }


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Returns the smallest box around a mask: memory and time of surfaces go by the box, not by the image."""
    axes = range(mask.ndim)
    filled = (np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes)
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in filled)


def implementation(surface: bool) -> dict[str, str]:
    """Returns what computed each group of metrics, with versions, to be written beside the numbers."""
    own = f"nnunet_mutual {version('nnunet_mutual')}"
    found = {"Dice, IoU, volumes": f"{own}, voxel counts"}
    if surface:
        found[SURFACE_DICE] = f"{own}, scikit-image {version('scikit-image')}, areas of surface elements"
        found[HD95] = f"{own}, scipy {version('scipy')}, surface voxels"
    return found


def parse_tolerances(words: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Reads "2 liver=5": one tolerance for all labels, others for some of them.

    Args:
        words: ``MM`` or ``LABEL=MM``.
        labels: of the dataset.

    Returns:
        Label -> tolerance in mm, for every label.

    Raises:
        MutualError: no number, a negative one, or an unknown label.
    """
    return parse_by_label(
        "--tolerance",
        words,
        labels,
        general=TOLERANCE,
        accepts=lambda value: 0 <= value < math.inf,
        expected="expected millimetres, such as --tolerance 1 or --tolerance liver=3",
    )


def parse_by_label(
    option: str,
    words: Sequence[str],
    labels: Sequence[str],
    *,
    general: float,
    accepts: Callable[[float], bool],
    expected: str,
) -> dict[str, float]:
    """Reads "2 liver=5" of an option: one number for all labels, others for some of them.

    Args:
        option: that the words were given to.
        words: ``NUMBER`` or ``LABEL=NUMBER``.
        labels: of the dataset.
        general: number of a label for which nothing is said.
        accepts: whether a number can be meant; NaN where it is none.
        expected: for the sentence, "expected ..., such as ...".

    Raises:
        MutualError: a number that cannot be meant, or an unknown label.
    """
    own = {}
    for word in words:
        label, _, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not accepts(value):
            raise MutualError(f"{option} {word}: {expected}")
        if not label:
            general = value
        elif label in labels:
            own[label] = value
        else:
            raise MutualError(
                f"{option} {word}: the dataset has no label {label!r}{meant(label, labels)}; "
                f"labels: {', '.join(labels)}"
            )
    return {label: own.get(label, general) for label in labels}
