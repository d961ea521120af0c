"""Predictions, and label maps, restricted to the labels that a case annotates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_mutual.annotation.table import AnnotationTable, Case


@dataclass(frozen=True)
class Restriction:
    """How to take the labels that a case does not annotate out of a prediction.

    Attributes:
        removed: pairs (channel to remove, channels that may inherit its probability; empty for regions).
    """

    removed: tuple[tuple[int, tuple[int, ...]], ...]


def restriction_for(table: AnnotationTable, case: Case) -> Restriction | None:
    """Returns how to restrict the prediction of a case, or None if it annotates everything.

    An unannotated label goes to the annotated label that contains it; else to the likelier of background and the
    annotated labels that may overlap it; else to background.
    """
    unannotated = [label for label in table.labels if label not in case.annotated]
    if not unannotated:
        return None
    if table.is_regions:
        return Restriction(tuple((table.labels.index(label), ()) for label in unannotated))
    contained = table.contained(case)
    removed = []
    for label in unannotated:
        outer = [b for b in table.labels if b in case.annotated and label in contained.get(b, ())]
        partners = sorted(table.overlap_partners(label) & case.annotated)
        heirs = tuple(table.values[b][0] for b in outer) or (0, *(table.values[b][0] for b in partners))
        removed.append((table.values[label][0], heirs))
    return Restriction(tuple(removed))


def restrict(probabilities: np.ndarray, restriction: Restriction) -> np.ndarray:
    """Takes the unannotated labels out of probabilities.

    Args:
        probabilities: (C, *spatial), softmax or sigmoid.
        restriction: from :func:`restriction_for`.

    Returns:
        A new array of the same shape. Per removed channel a with its likeliest heir t: p_t = max(p_t, p_a), p_a = 0.
    """
    result = probabilities.copy()
    for channel, heirs in restriction.removed:
        if heirs:
            values = probabilities[channel]
            best = np.argmax(probabilities[list(heirs)], 0)
            for position, heir in enumerate(heirs):
                result[heir] = np.where(best == position, np.maximum(result[heir], values), result[heir])
        result[channel] = 0
    return result


def vouched(drawn: np.ndarray, table: AnnotationTable, case: Case) -> np.ndarray:
    """Takes labels that the case does not annotate (drawn by a model) out of its label map.

    They become 0: none of the annotated labels was drawn there. Where one may be hidden beneath, they stay, since
    neither is known. Regions stay: an integer says for each annotated region whether it is there.

    Args:
        drawn: (*spatial) integers.
        table: labels and their relations.
        case: what is annotated.
    """
    if table.is_regions:
        return drawn
    foreign = [a for a in table.labels if a not in case.annotated and not table.beneath(case, a)]
    return np.where(np.isin(drawn, [table.values[a][0] for a in foreign]), 0, drawn)
