"""Which trainer fits a dataset, by what its cases say about its labels."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_mutual.annotation.table import AnnotationTable


def fitting_trainers(table: AnnotationTable, cases: Sequence[str], unlabelled: bool) -> list[tuple[str, str]]:
    """Returns the trainers that a dataset asks for, each with the reason, the most telling reason first.

    Args:
        table: the annotation table.
        cases: training cases.
        unlabelled: whether imagesUn holds images.
    """
    annotated = [table.case(key).annotated for key in cases]
    partial = any(labels not in (frozenset(), frozenset(table.labels)) for labels in annotated)
    found = []
    if table.modality_groups:
        found.append(("MutualCrossModalTrainer", f"{len(table.modality_groups)} modality groups"))
    if unlabelled or frozenset() in annotated:
        found.append(("MutualCorrelationTrainer", "there are unlabelled images"))
    if partial:
        found.append(("MutualPartialTrainer", "cases annotate different labels"))
    simple = "one network, for any annotated sets" if partial else "every case annotates every label"
    return [*found, ("PartialTrainer", simple)]
