"""What a mask of one more label does to a label map in which others were drawn: the annotation table decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.possible import drawn_around, hypotheses, left_open
from nnunet_mutual.annotation.table import AnnotationTable


@dataclass(frozen=True)
class Rule:
    """What becomes of the voxels drawn with one integer.

    Attributes:
        inside: their integer where the mask covers them; None if the mask contradicts the drawing there.
        outside: their integer elsewhere.
    """

    inside: int | None
    outside: int


def rules_for(table: AnnotationTable, case: Case, label: str) -> dict[int, Rule]:
    """Returns a rule per integer of the label map, for a label that the case does not annotate.

    Plain labels: a drawn label that contains the new one in this source gives way; one that the new label contains in
    any source, or may overlap, stays; any other one contradicts. What nobody vouched for (labels that nobody drew in
    the case but a model) gives way; what a model drew of the new label outside of the mask becomes the innermost drawn
    label that contains it, which it has hidden. A part of the new label that somebody drew stays, whether the mask
    covers it or not. Regions: the integer that agrees with the drawing on every annotated region and with the mask on
    the new one; there may be none. The ignore label always stays.

    Args:
        table: labels and their relations.
        case: what is annotated so far.
        label: whose mask it is.
    """
    rules = _region_rules(table, case, label) if table.is_regions else _plain_rules(table, case, label)
    return rules if table.ignore is None else {**rules, table.ignore: Rule(table.ignore, table.ignore)}


def put_in(drawn: np.ndarray, mask: np.ndarray, rules: Mapping[int, Rule]) -> tuple[np.ndarray, np.ndarray]:
    """Puts a mask into a label map.

    Args:
        drawn: (*spatial) integers, each with a rule.
        mask: (*spatial) bool.
        rules: of :func:`rules_for`.

    Returns:
        The new label map (integers as in ``drawn``), in which the drawing stays wherever the mask contradicts it, and
        (*spatial) bool, where that is.
    """
    size = max(rules) + 1
    inside, outside = np.arange(size, dtype=drawn.dtype), np.arange(size, dtype=drawn.dtype)
    contradicts = np.zeros(size, bool)
    for y, rule in rules.items():
        inside[y] = rule.outside if rule.inside is None else rule.inside
        outside[y], contradicts[y] = rule.outside, rule.inside is None
    merged = np.where(mask, inside[drawn], outside[drawn])
    return merged, mask & contradicts[drawn]


def _plain_rules(table: AnnotationTable, case: Case, label: str) -> dict[int, Rule]:
    value = table.values[label][0]
    contained, possible = table.contained(case), left_open(table, case)
    outer = drawn_around(label, case.annotated, contained)
    beneath = 0 if outer is None else table.values[outer][0]
    rules = {0: Rule(value, 0), value: Rule(value, value if label in case.incomplete else beneath)}
    for other in table.labels:
        y = table.values[other][0]
        if other == label:
            continue
        if other not in case.drawn or label in contained.get(other, ()):
            rules[y] = Rule(value, y)
        elif label in possible[y] or table.ever_contains(label, other):
            rules[y] = Rule(y, y)
        else:
            rules[y] = Rule(None, y)
    return rules


def _region_rules(table: AnnotationTable, case: Case, label: str) -> dict[int, Rule]:
    same_as = hypotheses(table, case)
    regions = {z: {name for name, values in table.values.items() if z in values} for z in same_as}
    rules = {}
    for y, integers in same_as.items():
        # The drawn integer if it fits, else the one that says least about regions that nobody drew.
        same = [y, *sorted(integers - {y}, key=lambda z: (len(regions[z]), z))]
        inside = next((z for z in same if label in regions[z]), None)
        rules[y] = Rule(inside, next((z for z in same if label not in regions[z]), y))
    return rules
