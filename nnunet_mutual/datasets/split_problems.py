"""What can be wrong with folds, whoever made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from nnunet_mutual.annotation.table import AnnotationTable, drawn_in_part
from nnunet_mutual.datasets.problems import ERROR, WARNING, Problem
from nnunet_mutual.errors import shorten

Split = dict[str, list[str]]
PARTS = ("train", "val")


def splits_problems(table: AnnotationTable, splits: object, keys: Sequence[str], place: str) -> list[Problem]:
    """Finds what is wrong with an existing splits_final.json.

    Args:
        table: the annotation table.
        splits: content of the file.
        keys: the training cases of the dataset.
        place: name of the file.
    """
    if not isinstance(splits, list) or not all(_is_split(fold) for fold in splits):
        return [
            Problem(
                ERROR,
                place,
                'expected a list of {"train": [...], "val": [...]}; correct the file, or delete it to get new folds',
            )
        ]
    problems = []
    present = set(keys)
    # What nobody annotates is a problem of the dataset, said once, and not of each fold.
    taught = [label for label in table.labels if any(label in table.case(key).annotated for key in keys)]
    for number, fold in enumerate(splits):
        unknown = sorted({*fold["train"], *fold["val"]} - present)
        if unknown:
            problems.append(
                Problem(
                    ERROR,
                    f"{place}, fold {number}",
                    f"{len(unknown)} case(s) are not in the dataset: {shorten(unknown)}; remove them",
                )
            )
        known = {part: [key for key in fold[part] if key in present] for part in PARTS}
        found = fold_problems(table, known, number, taught)
        problems += [Problem(problem.severity, f"{place}, {problem.place}", problem.text) for problem in found]
    used = {key for fold in splits for part in PARTS for key in fold[part]}
    if forgotten := sorted(present - used):
        problems.append(
            Problem(WARNING, place, f"{len(forgotten)} case(s) are in no fold and are never used: {shorten(forgotten)}")
        )
    return problems


def _is_split(fold: object) -> bool:
    if not isinstance(fold, Mapping):
        return False
    parts = [fold.get("train"), fold.get("val")]
    return all(isinstance(part, list) and all(isinstance(key, str) for key in part) for part in parts)


def fold_problems(
    table: AnnotationTable, fold: Split, number: int | str, labels: Iterable[str] | None = None
) -> list[Problem]:
    """Finds what is wrong with one fold, whoever made it.

    Args:
        table: the annotation table.
        fold: ``{"train": [...], "val": [...]}`` with cases of the table.
        number: number of the fold, for the sentences.
        labels: which labels must be in the fold; all by default.
    """
    place = f"fold {number}"
    problems = []
    both = sorted(set(fold["train"]) & set(fold["val"]))
    if both:
        problems.append(
            Problem(
                ERROR,
                place,
                f"{len(both)} case(s) are used for training and for validation: {shorten(both)}; remove them from one",
            )
        )
    patients = {part: {table.case(key).patient: key for key in fold[part] if key not in both} for part in PARTS}
    for patient in sorted(p for p in set(patients["train"]) & set(patients["val"]) if p is not None):
        pair = f"{patients['train'][patient]} in training, {patients['val'][patient]} in validation"
        problems.append(
            Problem(
                ERROR, place, f"patient {patient} is on both sides ({pair}), so the scores would be too good; move one"
            )
        )
    drawn = {part: Counter(label for key in fold[part] for label in table.case(key).annotated) for part in PARTS}
    for label in table.labels if labels is None else labels:
        if not drawn["train"][label]:
            why = drawn_in_part(map(table.case, fold["train"]), [label])
            text = f"no training case annotates {label}{why}, so this fold cannot learn it; move a case that does"
            problems.append(Problem(ERROR, place, text))
        elif not drawn["val"][label]:
            problems.append(
                Problem(
                    WARNING, place, f"no validation case annotates {label}, so this fold gives no score for it (n = 0)"
                )
            )
    return problems + _in_part_problems(table, fold, place) + _group_problems(table, fold, place)


def _in_part_problems(table: AnnotationTable, fold: Split, place: str) -> list[Problem]:
    """Names the labels of which a validation case draws a part, which nnU-Net would score as if it were all."""
    problems = []
    in_part = [key for key in fold["val"] if table.case(key).incomplete]
    for label in table.labels:
        keys = [key for key in in_part if label in table.case(key).incomplete]
        if keys:
            text = (
                f"{len(keys)} validation case(s) draw {label} in part ({shorten(keys)}): of these only the share of "
                "the drawn voxels that is found (sensitivity) can be said; nnU-Net's own scores of them "
                f"(find_best_configuration, postprocessing) take {label} that was not drawn for false, so move the "
                "cases to training, or leave such scores out"
            )
            problems.append(Problem(WARNING, place, text))
    return problems


def _group_problems(table: AnnotationTable, fold: Split, place: str) -> list[Problem]:
    """Names the modality groups whose channels no case of a part of a fold has."""
    problems = []
    for name, cases in cases_of_groups(table, [*fold["train"], *fold["val"]]).items():
        if table.modality_groups and not cases & set(fold["train"]):
            text = (
                f"no annotated training case has the channels of the modality group {name}, so its network learns from "
                "the others alone; move a case that has them"
            )
            problems.append(Problem(WARNING, place, text))
        elif table.modality_groups and not cases & set(fold["val"]):
            text = (
                f"no validation case has the channels of the modality group {name}, so this fold gives no score for it "
                "(n = 0)"
            )
            problems.append(Problem(WARNING, place, text))
    return problems


def cases_of_groups(table: AnnotationTable, keys: Iterable[str]) -> dict[str, frozenset[str]]:
    """Returns the annotated cases that have the channels of each modality group which some of them lack.

    Without groups each channel counts as one.
    """
    cases = [case for case in map(table.case, keys) if case.drawn]
    groups = table.modality_groups or {channel: (channel,) for channel in table.channels}
    found = {
        name: frozenset(case.key for case in cases if not case.missing & set(channels))
        for name, channels in groups.items()
    }
    return {name: members for name, members in found.items() if len(members) < len(cases)}
