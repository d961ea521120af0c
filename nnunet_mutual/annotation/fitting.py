"""Which trainer fits a dataset: what every "Next:" and the planners ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable

BY_GROUP = ("MutualCrossModalTrainer",)
# The mean teacher is level with the others at a smaller cost (README, Results).
UNLABELLED = ("MeanTeacherTrainer", "MutualCorrelationTrainer", "MutualPrototypeTrainer", "SoftLabelTrainer")
LABELLED = ("PartialTrainer", "MutualPartialTrainer")
DIFFERENT = ("PartialTrainer", "TaughtPartialTrainer", "MutualPartialTrainer")
# Where a source has few cases, exchanged boxes and an average as teacher help (README, Results).
DIFFERENT_FEW = ("TaughtPartialTrainer", "PartialTrainer", "MutualPartialTrainer")
FEW = 10  # of so many cases one that annotates nothing counts, as an image in imagesUn does; so many draw few


def fitting_trainers(
    table: AnnotationTable,
    cases: Iterable[str],
    unlabelled: bool,
    *,
    by_group: bool | None = None,
    accepting: Sequence[str] | None = None,
) -> list[tuple[str, str]]:
    """Returns the trainers that a dataset asks for, each with the reason, the first choice first.

    Args:
        table: the annotation table.
        cases: training cases.
        unlabelled: whether imagesUn holds images.
        by_group: whether the data are preprocessed by modality group, which one trainer reads and no other; None before
            planning: as the table declares.
        accepting: trainers that know the settings given; None: all.
    """
    listed, everything = [table.case(key) for key in cases], frozenset(table.labels)
    entries = [case for case in listed if case.drawn]
    empty = len(listed) - len(entries)
    fitting: tuple[str, ...]
    if by_group if by_group is not None else bool(table.modality_groups):
        fitting, why = BY_GROUP, f"{len(table.modality_groups)} modality groups"
    elif unlabelled or FEW * empty >= len(listed) > 0:
        fitting, why = (*UNLABELLED, *DIFFERENT), "there are unlabelled images"
    elif any(case.drawn != everything for case in entries):
        few = _drawn_by_few(entries, everything)
        fitting = DIFFERENT_FEW if few else DIFFERENT
        why = "cases annotate different labels" + f", and none that is left out is drawn in more than {FEW}" * few
    elif any(case.incomplete for case in entries):
        fitting, why = DIFFERENT, "labels are drawn in part"
    else:
        fitting, why = LABELLED, f"every case{' that is drawn' * bool(empty)} annotates every label"
    chosen = [name for name in fitting if accepting is None or name in accepting]
    if accepting is not None and not chosen:
        chosen = [name for name in (*UNLABELLED, *DIFFERENT, *BY_GROUP) if name in accepting] or [*accepting]
        why = f"it knows these settings, but the dataset asks for {fitting[0]}: {why}"
    return [(name, why) for name in chosen]


def _drawn_by_few(entries: Sequence[Case], everything: frozenset[str]) -> bool:
    """Whether every label that some case leaves out is drawn in few, in whole or not at all."""
    if any(case.incomplete for case in entries):
        return False
    left_out = {label for case in entries for label in everything - case.drawn}
    return all(sum(label in case.drawn for case in entries) <= FEW for label in left_out)
