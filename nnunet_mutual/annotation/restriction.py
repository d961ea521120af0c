"""Predictions, and label maps, restricted to the labels that a case annotates, completely or in part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable


@dataclass(frozen=True)
class Restriction:
    """How to take the labels that a case does not annotate out of a prediction of plain labels.

    Attributes:
        removed: pairs (channel to remove, channels of which the likeliest inherits its probability).
    """

    removed: tuple[tuple[int, tuple[int, ...]], ...]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns new probabilities: per removed channel a with its likeliest heir t, p_t = max(p_t, p_a), p_a = 0."""
        result = probabilities.copy()
        for channel, heirs in self.removed:
            values = probabilities[channel]
            best = np.argmax(probabilities[list(heirs)], 0)
            for position, heir in enumerate(heirs):
                result[heir] = np.where(best == position, np.maximum(result[heir], values), result[heir])
            result[channel] = 0
        return result


@dataclass(frozen=True)
class RegionRestriction:
    """The same of regions, whose label map stock nnU-Net paints: one region after the other, over the earlier ones.

    Attributes:
        order: integer that each region's channel paints, ``regions_class_order``.
        removed: (channel to remove, annotated regions that hold its integer, earlier annotated ones over which it
            paints), in the order of painting.
        becomes: the integer to write for each that the full map may hold.
    """

    order: tuple[int, ...]
    removed: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]
    becomes: Mapping[int, int]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns new probabilities, whose label map says of annotated regions what that of the given ones says.

        A removed channel raises the regions that hold its integer to its probability, lowers those over which it
        paints to 1 - its probability, and becomes 0. Where that paints something else (regions that are neither nested
        nor apart, or an order that paints outer ones over inner ones), the integer to write gets a channel's say alone.
        """
        result = probabilities.copy()
        for channel, outer, covered in self.removed:
            values = probabilities[channel]
            for region in outer:
                result[region] = np.maximum(result[region], values)
            for region in covered:
                result[region] = np.where(values > 0.5, np.minimum(result[region], 1 - values), result[region])
            result[channel] = 0
        look_up = np.zeros(max(self.becomes) + 1, np.int64)
        look_up[list(self.becomes)] = list(self.becomes.values())
        wanted = look_up[_painted(probabilities, self.order)]
        wrong = _painted(result, self.order) != wanted
        result[:, wrong] = 0
        for channel, integer in enumerate(self.order):
            place = wrong & (wanted == integer)
            result[channel, place] = probabilities[:, place].max(0)
        return result


def restriction_for(
    table: AnnotationTable, case: Case, order: Sequence[int] | None = None
) -> Restriction | RegionRestriction | None:
    """Returns how to restrict the prediction of a case, or None if it draws everything.

    An unannotated label goes to the annotated label that contains it; else to the likelier of background and the
    annotated labels that may overlap it; else to background. An unannotated region counts for the annotated regions
    that hold its integer. A label that is drawn in part stays, as one that is annotated.

    Args:
        table: the annotation table.
        case: whose prediction it is.
        order: ``regions_class_order`` of a region dataset.

    Raises:
        ValueError: a region dataset without an integer for each region.
    """
    unannotated = [label for label in table.labels if label not in case.drawn]
    if not unannotated:
        return None
    if table.is_regions:
        return _of_regions(table, case, tuple(int(integer) for integer in order or ()))
    contained = table.contained(case)
    removed = []
    for label in unannotated:
        outer = [b for b in table.labels if b in case.drawn and label in contained.get(b, ())]
        partners = sorted(table.overlap_partners(label) & case.drawn)
        heirs = tuple(table.values[b][0] for b in outer) or (0, *(table.values[b][0] for b in partners))
        removed.append((table.values[label][0], heirs))
    return Restriction(tuple(removed))


def _of_regions(table: AnnotationTable, case: Case, order: tuple[int, ...]) -> RegionRestriction:
    if len(order) != len(table.labels):
        raise ValueError(f"{len(table.labels)} regions need as many integers, found {order}")
    holds = [frozenset(table.values[label]) for label in table.labels]
    annotated = [n for n, label in enumerate(table.labels) if label in case.drawn]

    def said(integer: int) -> list[bool]:
        return [integer in holds[n] for n in annotated]

    def unknown(integer: int) -> int:
        """How many unannotated regions stock tools would score because of it."""
        return sum(integer in values for values in holds) - sum(said(integer))

    becomes = {}
    for integer in order:
        same = [other for other in (0, *order) if said(other) == said(integer)]
        becomes[integer] = min(same, key=unknown)
    removed = []
    for channel, integer in enumerate(order):
        if channel not in annotated:
            outer = tuple(n for n in annotated if integer in holds[n])
            removed.append((channel, outer, tuple(n for n in annotated if n < channel and n not in outer)))
    return RegionRestriction(order, tuple(removed), {0: 0, **becomes})


def _painted(probabilities: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Label map (*spatial) of regions, as stock nnU-Net's."""
    found = np.zeros(probabilities.shape[1:], np.int64)
    for channel, integer in zip(probabilities, order, strict=True):
        found[channel > 0.5] = integer
    return found


def vouched(drawn: np.ndarray, table: AnnotationTable, case: Case) -> np.ndarray:
    """Takes labels that nobody drew in the case (but a model) out of its label map.

    They become 0: none of the annotated labels was drawn there. Where one may be hidden beneath, they stay, since
    neither is known. Regions stay: an integer says for each annotated region whether it is there.

    Args:
        drawn: (*spatial) integers.
        table: labels and their relations.
        case: what is annotated.
    """
    if table.is_regions:
        return drawn
    foreign = [a for a in table.labels if a not in case.drawn and not table.beneath(case, a)]
    return np.where(np.isin(drawn, [table.values[a][0] for a in foreign]), 0, drawn)
