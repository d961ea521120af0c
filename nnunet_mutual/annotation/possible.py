"""What may truly be at a voxel, given what was drawn there and what the case annotates: the rule on which all hangs.

Losses, pseudo labels, merging and review derive from it what they need.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable

Names = Mapping[str, frozenset[str]]


def output_channels(table: AnnotationTable) -> dict[str, int]:
    """Returns the output of a network that stands for each label: its integer, or its place among regions."""
    if table.is_regions:
        return {label: i for i, label in enumerate(table.labels)}
    return {label: table.values[label][0] for label in table.labels}


def unseen_labels(
    drawn: str | None, labels: Set[str], annotated: Set[str], contained: Names, overlaps: Names
) -> frozenset[str]:
    """Returns the labels that nobody looked for and that may be at a voxel, of labels that exclude each other.

    Where a label was drawn, what it contains or overlaps may be there; at background everything, but what would have
    been drawn as part of another label.

    Args:
        drawn: the label drawn there, completely or in part; None for background.
        labels: all labels.
        annotated: labels that somebody looked for and drew completely.
        contained: what each label was drawn with, at any depth.
        overlaps: labels that may share voxels with it.
    """
    unseen = frozenset(labels) - annotated
    if drawn is None:
        return unseen - frozenset[str]().union(*(contained.get(label, frozenset()) for label in annotated))
    return unseen & (contained.get(drawn, frozenset()) | overlaps.get(drawn, frozenset()))


def agreeing_integers(
    drawn: int, regions: Mapping[str, Set[int]], annotated: Set[str], incomplete: Set[str] = frozenset()
) -> frozenset[int]:
    """Returns the integers that agree with a drawn one about every annotated region.

    Args:
        drawn: integer of the label map.
        regions: integers of each region.
        annotated: regions that somebody looked for and drew completely.
        incomplete: regions of which a part is drawn; where it is, they are present.
    """
    integers = frozenset({0}).union(*regions.values())
    asked = [regions[name] for name in [*annotated, *(name for name in incomplete if drawn in regions[name])]]
    return frozenset(z for z in integers if all((z in region) == (drawn in region) for region in asked))


def left_open(table: AnnotationTable, case: Case) -> dict[int, frozenset[str]]:
    """Returns what each value that can be drawn leaves open, of plain labels; see :func:`unseen_labels`.

    Args:
        table: labels and their relations.
        case: what is annotated.
    """
    labels, contained = frozenset(table.labels), table.contained(case)
    overlaps = {label: table.overlap_partners(label) for label in case.drawn}
    drawn: dict[int, str | None] = {0: None, **{table.values[label][0]: label for label in case.drawn}}
    return {y: unseen_labels(name, labels, case.annotated, contained, overlaps) for y, name in drawn.items()}


def fitting_pairs(table: AnnotationTable, case: Case) -> set[tuple[int, int]]:
    """Returns which value may be decided where which was drawn in a case: decisions change nothing annotated."""
    if table.is_regions:
        return {(y, z) for y, integers in hypotheses(table, case).items() for z in integers}
    values = {name: table.values[name][0] for name in table.labels}
    return {(y, z) for y, names in left_open(table, case).items() for z in (y, *(values[name] for name in names))}


def drawn_around(label: str, drawn: Set[str], contained: Names) -> str | None:
    """Returns the innermost drawn label whose outline contains another one; None if none does.

    Args:
        label: the other one.
        drawn: labels.
        contained: what each label was drawn with, at any depth.
    """
    around = [outer for outer in contained if outer in drawn and label in contained[outer]]
    return next((outer for outer in around if contained[outer].isdisjoint(around)), None)


def hypotheses(table: AnnotationTable, case: Case) -> dict[int, frozenset[int]]:
    """Returns, per integer of a map of regions, those that may truly be there; see :func:`agreeing_integers`."""
    regions = {label: frozenset(table.values[label]) for label in table.labels}
    integers = frozenset({0}).union(*regions.values())
    return {y: agreeing_integers(y, regions, case.annotated, case.incomplete) for y in integers}
