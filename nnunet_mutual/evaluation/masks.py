"""Dice, and the masks of a prediction that are scored: only where the reference says something about the label.

What a case does not annotate is left out, not counted as absent: in a reference that lacks the liver because nobody
drew it, a correct liver would otherwise be a false positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError


def dice(prediction: np.ndarray, reference: np.ndarray, *, empty: float = math.nan) -> float:
    r"""Returns the Dice coefficient of two masks.

    .. math:: 2 |P \cap R| / (|P| + |R|)

    Args:
        prediction: (*spatial) bool.
        reference: (*spatial) bool.
        empty: what two empty masks have; NaN, so that an absent label neither raises nor lowers a mean (as nnU-Net's).
            1 where two opinions about what is there are compared.

    Returns:
        0 to 1, or ``empty``.

    Raises:
        MutualError: the shapes differ.
    """
    _require_same_shape(prediction, reference)
    size = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / size if size else empty


@dataclass(frozen=True)
class Masks:
    """One annotated label of one case.

    Attributes:
        label: its name.
        predicted: (*spatial) bool, what counts as predicted.
        drawn: (*spatial) bool, the reference.
    """

    label: str
    predicted: np.ndarray
    drawn: np.ndarray


def annotated_masks(
    prediction: np.ndarray,
    reference: np.ndarray,
    table: AnnotationTable,
    case: Case,
) -> Iterator[Masks]:
    """Yields the masks of each annotated label of one case, in the order of the table.

    A predicted label that the case does not annotate counts as what the reference would have called it: the annotated
    label that contains it in this source, or, where the reference has a label that it may overlap, that label. Where
    the reference has a label that the case does not annotate (drawn by a model), it says that none of the annotated
    ones was drawn there, except those that it may hide: these are in no mask there. A label that is drawn in part is
    not scored, and counts as one that is not annotated, where it was not drawn. Voxels of the ignore label in the
    reference are in no mask.

    Args:
        prediction: label map (*spatial) integers.
        reference: label map (*spatial) integers.
        table: labels, regions, and how they contain or overlap each other.
        case: what the reference annotates.

    Raises:
        MutualError: the shapes differ.
    """
    _require_same_shape(prediction, reference)
    contained = table.contained(case)
    for label in table.labels:
        if label not in case.annotated:
            continue
        drawn = np.isin(reference, table.values[label])
        inner = contained.get(label, frozenset()) - case.annotated
        predicted = np.isin(prediction, _integers(table, {label, *inner}))
        partners = table.overlap_partners(label) - case.annotated
        if partners:
            predicted |= drawn & np.isin(prediction, _integers(table, partners))
        if not table.is_regions:
            if case.incomplete & inner:
                predicted &= drawn | (prediction != reference)
            hiding = {a for a in table.labels if a not in case.drawn and label in table.beneath(case, a)}
            if hiding:
                predicted &= ~np.isin(reference, _integers(table, hiding))
        if table.ignore is not None:
            predicted &= reference != table.ignore
        yield Masks(label, predicted, drawn)


def _require_same_shape(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape:
        raise MutualError(
            f"a prediction of shape {prediction.shape} cannot be compared with a reference of shape {reference.shape}; "
            "both must lie on the grid of the image"
        )


def _integers(table: AnnotationTable, labels: Iterable[str]) -> list[int]:
    return [value for label in labels for value in table.values[label]]
