"""Which networks a partially labelled dataset asks for: groups of cases that annotate the same labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from nnunet_mutual.annotation.table import AnnotationTable

MOST_GROUPS = 4

LabelGroup = frozenset[str]


def choose_label_groups(table: AnnotationTable, cases: Iterable[str], most: int = MOST_GROUPS) -> list[LabelGroup]:
    """Chooses annotated sets that together cover the labels, greedily.

    Each step takes the set that adds most labels; among equals the one with most cases, then the first by name.

    Args:
        table: the annotation table.
        cases: training cases.
        most: number of groups at most.

    Returns:
        Annotated sets, in the order of their choice.

    Source: greedy set cover [E], methods after arXiv 2407.12611: one partial-organ model per annotated set.
    """
    count = Counter(table.case(key).annotated for key in cases)
    chosen: list[LabelGroup] = []
    covered: frozenset[str] = frozenset()
    while len(chosen) < most:
        best = min(count, key=lambda labels: (-len(labels - covered), -count[labels], sorted(labels)), default=covered)
        if best <= covered:
            break
        chosen.append(best)
        covered |= best
    return chosen


def home(groups: Sequence[LabelGroup], annotated: LabelGroup) -> int | None:
    """Returns the group of a case that annotates these labels; None for a case of no group."""
    return groups.index(annotated) if annotated in groups else None


def describe_label_groups(table: AnnotationTable, cases: Iterable[str], groups: Sequence[LabelGroup]) -> str:
    """Returns one line per group for the log."""
    cases = list(cases)
    lines = []
    for n, group in enumerate(groups):
        number = sum(table.case(key).annotated == group for key in cases)
        names = ", ".join(label for label in table.labels if label in group)
        lines.append(f"network {n}: {names} ({number} cases annotate exactly these)")
    others = sum(home(groups, table.case(key).annotated) is None for key in cases)
    if others:
        lines.append(f"{others} cases annotate other sets and teach every network what they say about its labels")
    left = frozenset().union(*(table.case(key).annotated for key in cases)).difference(*groups)
    if left:
        names = ", ".join(label for label in table.labels if label in left)
        lines.append(f"no network for {names}: there are {MOST_GROUPS} at most; no pseudo labels of these are made")
    return "\n".join(lines)
