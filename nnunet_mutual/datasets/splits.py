"""Cross-validation folds for cases that annotate different labels, in the format of nnU-Net's splits_final.json."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from nnunetv2.utilities.crossval_split import generate_crossval_split
from tqdm import tqdm

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.coverage import columns
from nnunet_mutual.datasets.split_problems import PARTS, Split, cases_of_groups, fold_problems
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.host_files import read_splits
from nnunet_mutual.errors import MutualError, shorten

_Trait = tuple[str, str]  # a label that a case annotates, or a modality group whose channels it has as well
_LABEL, _GROUP = "label", "modality group"
_TRIES = 30
_MANY = 500  # patients, with which it takes seconds


@dataclass(frozen=True)
class _Unit:
    """Cases that must stay together: all cases of a patient, or one case.

    Attributes:
        cases: their names.
        traits: none if they annotate nothing.
        sets: traits of each case.
        in_part: whether a label is drawn in part in one of them.
    """

    cases: tuple[str, ...]
    traits: frozenset[_Trait]
    sets: tuple[frozenset[_Trait], ...]
    in_part: bool

    @cached_property
    def order(self) -> tuple[int, list[list[_Trait]]]:
        """The larger ones come first, and those alike together."""
        return -len(self.cases), sorted(map(sorted, self.sets))


def stratified_splits(
    table: AnnotationTable, case_keys: Sequence[str], *, n_folds: int = 5, seed: int = 12345
) -> list[Split]:
    """Makes folds in which every label, and every modality group, is validated wherever the data allow it.

    Cases are spread by the labels they annotate, rarest label first, then by their annotated set, then by fold size;
    the best of several seeded orders is taken. (scikit-learn's StratifiedGroupKFold spreads *sets*: where nearly every
    case annotates another set, it refuses or leaves folds without a label that many cases annotate.) The cases of a
    patient stay together. If all cases annotate the same labels and no patient has two cases, the folds are exactly
    nnU-Net's own. Where cases lack channels, having those of a modality group (without groups: a channel) counts as a
    label does.

    What only one patient annotates stays in every training set, because a fold that cannot learn a label is of no use.
    Cases that annotate nothing are never validated; those of a validation patient are left out of that fold. Patients
    of whom a label is drawn in part stay in every training set, too: where its remainder is, nobody could score.

    Args:
        table: the annotation table.
        case_keys: identifiers of the training cases.
        n_folds: number of folds.
        seed: nnU-Net's own seed is 12345.

    Returns:
        One ``{"train": [...], "val": [...]}`` per fold, sorted keys.

    Raises:
        MutualError: a case is not in the table, or there are fewer patients than folds.
    """
    keys = sorted(case_keys)
    table.require(keys)
    units = _units(table, keys)
    _require_enough(len(keys), units, n_folds)
    alike = len({unit.sets for unit in units}) == 1
    if alike and all(len(unit.cases) == 1 and not unit.in_part for unit in units):
        return [
            {part: [str(key) for key in split[part]] for part in PARTS}
            for split in generate_crossval_split(keys, seed, n_folds)
        ]
    movable = _movable(units, n_folds)
    if len(movable) < n_folds:
        raise MutualError(
            f"only {len(movable)} patient(s) can be validated: the others annotate nothing, draw a label in part, or "
            f"are the only ones with a label; {n_folds} folds need {n_folds}, train with fold all or write your own "
            "splits_final.json"
        )
    tries = tqdm(range(_TRIES), desc="folds", unit="try", file=sys.stderr, leave=False, disable=len(movable) < _MANY)
    attempts = [_spread(movable, n_folds, seed + attempt) for attempt in tries]
    return _as_splits(min(attempts, key=lambda folds: _cost(folds, movable)), units, table)


def provide_splits(table: AnnotationTable, case_keys: Sequence[str], fold: int | str, file: Path) -> str | None:
    """Makes splits_final.json unless there is one.

    Args:
        table: the annotation table.
        case_keys: identifiers of the training cases.
        fold: that is about to be trained.
        file: splits_final.json of the preprocessed dataset.

    Returns:
        A description of the new split, None where one existed.

    Raises:
        MutualError: the existing one does not have the fold, or the fold has unknown cases or none.
    """
    if not file.exists():
        splits = stratified_splits(table, sorted(case_keys))
        write_json(file, splits)
        return f"New split, by annotated set:\n{describe_splits(splits, table)}"
    splits = read_splits(file)
    if table.declared:
        require_fold(splits, int(fold), file)
    if int(fold) < len(splits):
        _require_usable(splits[int(fold)], case_keys, f"fold {fold} of {file}")
    return None


def require_fold(splits: Sequence[Split], fold: int, file: Path) -> None:
    """Raises MutualError where a fold is not in the splits of ``file``, so that nnU-Net would draw one."""
    if fold >= len(splits):
        raise MutualError(
            f"fold {fold} is not in {file}, which has the folds 0 to {len(splits) - 1}; nnU-Net would draw a random "
            "split that separates neither patients nor annotated sets: train one of these folds"
        )


def _require_usable(split: Split, case_keys: Iterable[str], place: str) -> None:
    """Verifies what nnU-Net's loaders rely on."""
    fix = "correct it, or delete that file to get new folds"
    for part, what in zip(PARTS, ("training", "validation"), strict=True):
        if not split[part]:
            raise MutualError(f'{place} has no {what} case ("{part}" is empty); {fix}')
    unknown = sorted({key for part in PARTS for key in split[part]} - set(case_keys))
    if unknown:
        raise MutualError(f"{place} names {len(unknown)} case(s) that are not preprocessed ({shorten(unknown)}); {fix}")


def describe_splits(
    splits: Sequence[Split], table: AnnotationTable, more: Mapping[str, Sequence[object]] | None = None
) -> str:
    """Returns a table of annotated cases, 'training/validation', with labels in rows and folds in columns.

    A label that is drawn in part in some cases has a second row.

    Args:
        splits: the folds.
        table: the annotation table.
        more: further rows: a name and one entry per fold.
    """

    used = {key for fold in splits for part in PARTS for key in fold[part]}

    def counts(name: str, keys: Collection[str]) -> list[str]:
        numbers = ([sum(key in keys for key in fold[part]) for part in PARTS] for fold in splits)
        return [name, *("/".join(map(str, pair)) for pair in numbers)]

    rows = [["label", *(f"fold {number}" for number in range(len(splits)))], counts("cases", used)]
    patients = [[len({table.case(key).patient for key in fold[part]} - {None}) for part in PARTS] for fold in splits]
    if any(map(any, patients)):
        rows.append(["patients", *("/".join(map(str, numbers)) for numbers in patients)])
    rows += [[name, *map(str, entries)] for name, entries in (more or {}).items()]
    for label in table.labels:
        rows.append(counts(label, {key for key in used if label in table.case(key).annotated}))
        if in_part := {key for key in used if label in table.case(key).incomplete}:
            rows.append(counts(f"{label} in part", in_part))
    rows += [counts(f"with {name}", keys) for name, keys in cases_of_groups(table, used).items()]
    notes = [
        f"  {problem.place}: {problem.text}"
        for number, fold in enumerate(splits)
        for problem in fold_problems(table, fold, number)
    ]
    validated = {key for fold in splits for key in fold["val"]}
    never = sorted({key for fold in splits for key in fold["train"]} - validated)
    if never:
        only = "a label or a modality group" if cases_of_groups(table, used) else "a label"
        part = " draw a label in part," if any(table.case(key).incomplete for key in never) else ""
        why = f"they annotate nothing,{part} or are the only ones with {only}"
        notes.append(f"  never validated ({why}): {shorten(never)}")
    return "\n".join(["annotated cases, training/validation", columns(rows), *notes])


def first_fold(preprocessed: Path, table: AnnotationTable, keys: Sequence[str]) -> str:
    """Returns the fold with which to begin: "0", or "all" where there are no folds and cannot be.

    Args:
        preprocessed: folder of the preprocessed dataset.
        table: the annotation table.
        keys: training cases, as far as they are known.
    """
    try:
        if keys and not (preprocessed / "splits_final.json").is_file():
            stratified_splits(table, keys)
    except MutualError:
        return "all"
    return "0"


def by_patient(table: AnnotationTable, keys: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups cases that must stay together: all of a patient; a case without patient is alone."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        patient = table.case(key).patient
        groups[("case", key) if patient is None else ("patient", patient)].append(key)
    return [tuple(cases) for cases in groups.values()]


def _units(table: AnnotationTable, keys: Sequence[str]) -> list[_Unit]:
    groups = cases_of_groups(table, keys)

    def traits(key: str) -> frozenset[_Trait]:
        labels = {(_LABEL, label) for label in table.case(key).annotated}
        return frozenset(labels | {(_GROUP, name) for name, members in groups.items() if key in members})

    units = []
    for cases in by_patient(table, keys):
        sets = tuple(map(traits, cases))
        units.append(_Unit(cases, frozenset().union(*sets), sets, any(table.case(key).incomplete for key in cases)))
    return units


def _movable(units: Sequence[_Unit], n_folds: int) -> list[_Unit]:
    """Units that may be validated: all but those that annotate nothing, draw a part, or are the only ones with a trait.

    Without the only ones with a modality group there may be too few; then a fold does without the group.
    """
    carriers = Counter(trait for unit in units for trait in unit.traits)
    unique = {trait for trait, number in carriers.items() if number == 1}
    for kept in (unique, {trait for trait in unique if trait[0] == _LABEL}):
        movable = [unit for unit in units if unit.traits and not unit.in_part and not unit.traits & kept]
        if len(movable) >= n_folds:
            break
    return movable


def _require_enough(n_cases: int, units: Sequence[_Unit], n_folds: int) -> None:
    if len(units) >= n_folds:
        return
    found = f"{n_cases} case(s)" + (f" of {len(units)} patient(s)" if len(units) < n_cases else "")
    raise MutualError(
        f"{found} cannot be divided into {n_folds} folds; train on all of them (nnunet_mutual train "
        "DATASET CONFIGURATION all -tr ...) or put your own splits_final.json into the folder of the preprocessed "
        "dataset"
    )


def _spread(units: Sequence[_Unit], n_folds: int, seed: int) -> list[list[_Unit]]:
    """Assigns units to folds, rarest trait first, each to the fold that lacks its trait most."""
    random = Random(seed)
    pending = sorted(units, key=lambda unit: unit.cases)
    random.shuffle(pending)
    pending.sort(key=lambda unit: unit.order)
    folds: list[list[_Unit]] = [[] for _ in range(n_folds)]
    sizes = [0] * n_folds
    has: list[Counter[object]] = [Counter() for _ in range(n_folds)]  # traits and sets of them in each fold
    frequency = Counter(trait for unit in units for trait in unit.traits)
    lacking = [set(frequency) for _ in range(n_folds)]
    for trait in sorted(frequency, key=lambda name: (frequency[name], name)):
        for unit in [unit for unit in pending if trait in unit.traits]:
            needs = [
                (
                    has[fold][trait],
                    -len(lacking[fold] & unit.traits),
                    sum(has[fold][drawn] for drawn in unit.sets),
                    sizes[fold],
                    random.random(),
                )
                for fold in range(n_folds)
            ]
            chosen = needs.index(min(needs))
            folds[chosen].append(unit)
            sizes[chosen] += len(unit.cases)
            has[chosen].update([*unit.traits, *unit.sets])
            lacking[chosen] -= unit.traits
        pending = [unit for unit in pending if trait not in unit.traits]
    return folds


def _cost(folds: Sequence[Sequence[_Unit]], units: Sequence[_Unit]) -> tuple[float, ...]:
    """Orders candidate folds: traits missing in training, then in validation, then uneven sizes, then uneven sets."""
    traits = {trait for unit in units for trait in unit.traits}
    carriers = {trait: [sum(trait in unit.traits for unit in fold) for fold in folds] for trait in traits}
    untrained = sum(max(counts) == sum(counts) for counts in carriers.values())
    unvalidated = sum(counts.count(0) for counts in carriers.values())
    sizes = [sum(len(unit.cases) for unit in fold) for fold in folds]
    sets = [Counter(drawn for unit in fold for drawn in unit.sets) for fold in folds]
    uneven = sum(_range([counter[drawn] for counter in sets]) ** 2 for drawn in set().union(*sets))
    return untrained, unvalidated, _range(sizes), uneven


def _range(numbers: Sequence[int]) -> int:
    return max(numbers) - min(numbers)


def _as_splits(folds: Sequence[Sequence[_Unit]], units: Sequence[_Unit], table: AnnotationTable) -> list[Split]:
    splits = []
    for fold in folds:
        held_out = {key for unit in fold for key in unit.cases}
        train = [key for unit in units for key in unit.cases if key not in held_out]
        splits.append({"train": sorted(train), "val": sorted(key for key in held_out if table.case(key).annotated)})
    return splits
