"""Everything that is wrong with a dataset, found without changing it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.modality_groups import ModalityGroups
from nnunet_mutual.annotation.table import AnnotationTable, drawn_in_part
from nnunet_mutual.datasets.case_voxels import TOGETHER, first_in_one_file, missing_files
from nnunet_mutual.datasets.coverage import Cell, coverage
from nnunet_mutual.datasets.look import Seen, look
from nnunet_mutual.datasets.problems import ERROR, WARNING, Problem
from nnunet_mutual.datasets.raw import CaseFiles, hidden_files, read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.split_problems import splits_problems
from nnunet_mutual.datasets.sync import raw_and_preprocessed_differ, refuse_interrupted
from nnunet_mutual.datasets.tolerant import readable_table
from nnunet_mutual.disk.files import natural, read_json
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.disk.locate import DatasetFolders
from nnunet_mutual.errors import MutualError, Spellings, shorten, shown, typed
from nnunet_mutual.settings import BLOCK


@dataclass(frozen=True)
class Examination:
    """What a dataset holds, and what is wrong with it.

    Attributes:
        table: its annotation table, as far as it can be read.
        cases: the training cases that the table knows.
        n_files: number of training cases.
        unlabelled: number of images in imagesUn.
        cells: of the coverage matrix.
        is_2d: whether all images are 2d.
        problems: errors and warnings.
        read: whether the voxels were read.
    """

    table: AnnotationTable
    cases: list[Case]
    n_files: int
    unlabelled: int
    cells: list[Cell]
    is_2d: bool
    problems: list[Problem]
    read: bool

    @property
    def errors(self) -> list[Problem]:
        """What would make a training wrong or impossible."""
        return [problem for problem in self.problems if problem.severity == ERROR]

    @property
    def configuration(self) -> str:
        """The configuration to suggest."""
        return "2d" if self.is_2d else "3d_fullres"


def examine(folders: DatasetFolders, *, before_planning: bool = False, headers_only: bool = False) -> Examination:
    """Reads every file and lists every problem.

    Args:
        folders: of the dataset.
        before_planning: leave out how an earlier plan and its folds differ, which planning brings up to date.
        headers_only: read no voxel, so that what files hold is not known.

    Raises:
        MutualError: the dataset cannot be examined at all, as while half of it is replaced.
    """
    assert folders.raw is not None
    refuse_interrupted(folders)
    dataset_json = read_dataset_json(folders.raw)
    table, problems = readable_table(dataset_json)
    whole = not problems
    files, found = training_cases(folders.raw, dataset_json)
    problems += _dataset_problems(dataset_json, table, len(files)) + found
    problems += _hidden_problems(folders, dataset_json)
    cases = {key: table.case(key) for key in files if not table.declared or key in table.cases}
    unlabelled, found = unlabelled_cases(folders.raw, dataset_json, files)
    problems += found + _misspelt_problems(folders.raw) + _unlabelled_problems(table, files, unlabelled)
    if table.declared:
        problems += listing_problems(_listed(dataset_json[BLOCK]), files, set(unlabelled))
    problems += _missing_channels(table, {**unlabelled, **files})
    problems += _group_problems(table, list(cases.values()), files)
    reader = reader_for(dataset_json, [path for case in files.values() for path in case.images.values()])
    seen = look(files, cases, table, reader, headers_only=headers_only)
    problems += [problem for one in seen.values() for problem in one.problems] + _no_ct(table, seen)
    present = {key: one.present for key, one in seen.items() if one.present is not None}
    ordered = list(cases.values())
    if whole:  # else labels would seem to be missing that only stand in wrong entries
        problems += _label_problems(table, ordered, present)
    problems += _region_problems(table, ordered)
    if not before_planning:
        problems += _copy_problems(folders, table, cases, complete=len(cases) == len(files))
    flat = [one.is_2d for one in seen.values() if one.is_2d is not None]
    cells = coverage(table, ordered, None if headers_only else present)
    counts = len(files), len(unlabelled), cells, bool(flat) and all(flat)
    return Examination(table, ordered, *counts, problems, read=not headers_only)


def _listed(block: Any) -> set[str]:
    """Names of the cases that a table lists, whatever it says about them."""
    cases = block.get("cases") if isinstance(block, Mapping) else None
    return set(cases) if isinstance(cases, Mapping) else set()


def _no_ct(table: AnnotationTable, seen: Mapping[str, Seen]) -> list[Problem]:
    """In HU air is at -1000: an image without negative values is no CT, or shifted, and nnU-Net believes the name."""
    lowest = {key: one.lowest for key, one in seen.items() if one.lowest is not None}
    channel = next((name for name in table.channels if name.casefold() == "ct"), "")
    positive = [key for key, value in lowest.items() if value >= 0]
    if not positive:
        return []
    text = (
        f"no negative value in {len(positive)} of {len(lowest)} case(s) ({shorten(positive)}); a CT in HU has air at "
        "-1000, so bring values that were stored as HU + 1000 or + 1024 to HU; if it is another modality, name the "
        'channel so ("channel_names" of dataset.json), since nnU-Net normalises what is called CT by HU'
    )
    return [Problem(WARNING, f"channel {channel}", text)]


def _hidden_problems(folders: DatasetFolders, dataset_json: Mapping[str, Any]) -> list[Problem]:
    assert folders.raw is not None
    places = ("imagesTr", "labelsTr", "imagesUn")
    found = {name: hidden_files(folders.raw / name, dataset_json["file_ending"]) for name in places}
    number = sum(map(len, found.values()))
    if not number:
        return []
    text = (
        f"{number} hidden file(s) in {' and '.join(name for name in places if found[name])}, such as "
        f"{next(names[0] for names in found.values() if names)}, as macOS makes them; nnunet_mutual ignores them, but "
        "nnUNetv2_plan_and_preprocess takes them for cases, so delete them: "
        f"find {typed(folders.raw)} -name '._*' -delete"
    )
    return [Problem(WARNING, "hidden files", text)]


def _misspelt_problems(raw: Path) -> list[Problem]:
    """A folder that is called nearly like imagesUn, which nothing would read without a word."""
    if (raw / "imagesUn").is_dir():
        return []
    names = sorted(path.name for path in raw.iterdir() if path.is_dir())
    alike = [name for name in names if re.match(r"(images_?)?un", name, re.IGNORECASE)]
    text = "nothing reads this folder; if it holds images without label maps, call it imagesUn"
    return [Problem(WARNING, name, text) for name in alike]


def _unlabelled_problems(
    table: AnnotationTable, training: Mapping[str, CaseFiles], unlabelled: Mapping[str, CaseFiles]
) -> list[Problem]:
    """Channels that images in imagesUn lack, by the names of their files; preprocessing reads the files."""
    if first_in_one_file(training, table) is not None:
        return []
    problems = []
    for number, name in enumerate(table.channels):
        declared = {key for key, case in table.cases.items() if name in case.missing}
        lacking = [key for key, files in unlabelled.items() if number not in files.images and key not in declared]
        if lacking:
            text = (
                f"no image of channel {number:04d} ({name}) in {len(lacking)} case(s) ({shorten(lacking)}); add it, "
                f'move the others away, or list {name} under "missing" of these cases'
            )
            problems.append(Problem(ERROR, "imagesUn", text))
    return problems


def _missing_channels(table: AnnotationTable, files: Mapping[str, CaseFiles]) -> list[Problem]:
    """Declared missing is enough for modality groups; nnU-Net itself needs a file for every channel."""
    lacking: dict[str, list[str]] = defaultdict(list)
    for key, case_files in files.items():
        for name in missing_files(case_files, table.cases.get(key), table):
            lacking[name].append(key)
    what = "; nnUNetv2_plan_and_preprocess needs an image of zeros there, nnunet_mutual plan_and_preprocess does not"
    if not table.modality_groups:
        what = (
            '; add an image of zeros for each, as nnU-Net needs a file for every channel, or declare "modality_groups" '
            "(docs/crossmodal.md), whose preprocessing does not"
        )
    severity = WARNING if table.modality_groups else ERROR
    return [
        Problem(
            severity,
            f"channel {name}",
            f"declared missing, without an image, in {len(keys)} case(s) ({shorten(keys)}){what}",
        )
        for name, keys in lacking.items()
    ]


def _group_problems(table: AnnotationTable, cases: Sequence[Case], training: Mapping[str, CaseFiles]) -> list[Problem]:
    """A modality group learns from the cases that have all its channels, each in a file of its own."""
    text = (
        'every case lacks one of its channels ({}), so nothing could teach its network; correct "missing" in the '
        "table, or remove the group: nnunet_mutual plan --groups"
    )
    problems = [
        Problem(ERROR, f"modality group {name}", text.format(", ".join(channels)))
        for name, channels in table.modality_groups.items()
        if cases and not any(case.missing.isdisjoint(channels) for case in cases)
    ]
    if table.modality_groups and first_in_one_file(training, table) is not None:
        problems.append(Problem(ERROR, "modality groups", TOGETHER))
    try:
        if table.modality_groups:
            ModalityGroups.of(table)
    except MutualError as error:
        problems.append(Problem(ERROR, "modality groups", str(error)))
    return problems


def _dataset_problems(dataset_json: Mapping[str, Any], table: AnnotationTable, n_cases: int) -> list[Problem]:
    problems = []

    def error(text: str) -> None:
        problems.append(Problem(ERROR, "dataset.json", text))

    if dataset_json.get("numTraining") != n_cases:
        error(
            f'"numTraining" is {dataset_json.get("numTraining")}, but there are {n_cases} training cases; correct '
            "the number or the folder"
        )
    integers = sorted({0, *(value for values in table.values.values() for value in values)})
    if integers != list(range(len(integers))):
        error(f"the label values are {integers}; nnU-Net expects 0, 1, 2, ... without gaps, renumber them")
    if table.ignore is not None and table.ignore != integers[-1] + 1:
        error(
            f'"ignore" has the value {table.ignore}, nnU-Net expects the highest one, {integers[-1] + 1}; renumber it'
        )
    if (background := dataset_json["labels"].get("background")) not in (0, "0"):
        found = "has no" if background is None else f"has {background!r} instead of"
        error(f'"labels" {found} "background": 0; correct it')
    if table.is_regions and (wrong := _wrong_order(dataset_json.get("regions_class_order"), table)):
        error(f'"regions_class_order" {wrong}; see nnU-Net\'s region_based_training.md')
    return problems


def _wrong_order(order: Any, table: AnnotationTable) -> str | None:
    """Says why nnU-Net could not make a label map of predicted regions: it paints one over the other, in order."""
    if not isinstance(order, list) or len(order) != len(table.labels) or any(type(value) is not int for value in order):
        return f"must list one value for each of the {len(table.labels)} regions, found {shown(order)}"
    for number, (name, value) in enumerate(zip(table.labels, order, strict=True)):
        own, later = set(table.values[name]), table.labels[number + 1 :]
        if value not in own:
            return f"gives {name} the value {value}, which is not in that region; give one of {sorted(own)}"
        over = next((other for other in later if value in table.values[other]), None)
        if over is not None:
            left = sorted(own.difference(*(table.values[other] for other in later)))
            mend = f"give one of {left}" if left else f'name {over} before {name} in "labels"'
            return f"gives {name} the value {value}, over which {over} is painted, so that {name} is lost; {mend}"
    return None


def listing_problems(listed: set[str], files: Mapping[str, CaseFiles], unlabelled: set[str]) -> list[Problem]:
    """Compares the cases that a table lists with the training cases and with those in imagesUn/."""
    absent = [key for key in files if key not in listed]
    spellings = Spellings(absent)
    surplus = sorted(listed - set(files) - unlabelled, key=natural)
    problems = [
        Problem(
            ERROR,
            f"case {key}",
            f"is in the table but has no image in imagesTr or imagesUn{spellings.meant(key)}; correct its name or "
            "remove it from the table",
        )
        for key in surplus
    ]
    if absent:
        text = (
            f"{len(absent)} training case(s) are not in the table: {shorten(absent, 10)}; say what was annotated in "
            "each, with nnunet_mutual annotate"
        )
        problems.append(Problem(ERROR, "table", text))
    return problems


def _label_problems(table: AnnotationTable, cases: Sequence[Case], present: Mapping[str, Set[str]]) -> list[Problem]:
    problems = []
    for label in table.labels:
        drawn = [case.key for case in cases if label in case.annotated]
        empty = [key for key in drawn if key in present and label not in present[key]]
        guessed = [case.key for case in cases if label in case.pseudo]
        if guessed:
            text = (
                f"a pseudo label in {len(guessed)} case(s) ({shorten(guessed)}), which says nothing until a reader "
                "accepts it (nnunet_mutual review); stock nnU-Net trains on it as if it were drawn, and its own "
                "evaluation (find_best_configuration) scores it there"
            )
            problems.append(Problem(WARNING, f"label {label}", text))
        problems += _in_part_problems(label, [case.key for case in cases if label in case.incomplete], present)
        if not drawn:
            only = f" (in {len(guessed)} case(s) it is a pseudo label, which nobody vouches for)" if guessed else ""
            text = (
                f"no case annotates it{only or drawn_in_part(cases, [label])}, so it cannot be learnt; add cases that "
                "do, or remove the label from dataset.json"
            )
            problems.append(Problem(ERROR, f"label {label}", text))
        elif empty and not table.declared:
            text = (
                f"no voxel in {len(empty)} of {len(drawn)} cases ({shorten(empty)}): absent there, or only not drawn?"
            )
            problems.append(Problem(WARNING, f"label {label}", text))
        elif empty:
            where = "any" if len(empty) == len(drawn) else f"{len(empty)} of the {len(drawn)}"
            text = (
                f"no voxel in {where} cases that annotate it ({shorten(empty)}); right if it is truly absent there "
                "(operated, out of view), else take it off the labels of these cases"
            )
            problems.append(Problem(WARNING, f"label {label}", text))
    return problems


def _in_part_problems(label: str, keys: Sequence[str], present: Mapping[str, Set[str]]) -> list[Problem]:
    if not keys:
        return []
    text = (
        f"drawn in part in {len(keys)} case(s) ({shorten(keys)}), where what is not drawn is unknown; stock nnU-Net "
        "trains on it as if it were absent there, and its own evaluation (find_best_configuration) scores it so"
    )
    empty = [key for key in keys if key in present and label not in present[key]]
    if empty:
        text += f"; {len(empty)} of them ({shorten(empty)}) have no voxel of it, so they say nothing about it"
    return [Problem(WARNING, f"label {label}", text)]


def _region_problems(table: AnnotationTable, cases: Sequence[Case]) -> list[Problem]:
    if not table.is_regions:
        return []
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in cases:
        for outer in set(table.labels) - case.drawn:
            inside = [
                label
                for label in table.labels
                if label in case.annotated and set(table.values[label]) < set(table.values[outer])
            ]
            for inner in inside[:1]:
                found[outer, inner].append(case.key)
    return [
        Problem(
            WARNING,
            f"label {outer}",
            f"{len(keys)} case(s) annotate only {inner} inside it ({shorten(keys, 10)}); nnU-Net's own evaluation "
            f"(summary.json, find_best_configuration) scores {outer} there as if it were {inner}, so leave these "
            "cases out when you quote it",
        )
        for (outer, inner), keys in sorted(found.items())
    ]


def _copy_problems(
    folders: DatasetFolders, table: AnnotationTable, cases: Mapping[str, Case], *, complete: bool
) -> list[Problem]:
    """Compares with the preprocessed dataset and examines existing folds."""
    problems = []
    difference = raw_and_preprocessed_differ(folders.name)
    if difference:
        problems.append(Problem(ERROR, "preprocessed dataset", difference))
    for folder in (folders.preprocessed, folders.raw):
        path = folder / "splits_final.json" if folder is not None else None
        if path is None or not path.is_file():
            continue
        try:
            splits = read_json(path)
        except MutualError as error:
            problems.append(Problem(ERROR, "splits_final.json", str(error)))
            continue
        if complete:  # otherwise every fold would repeat what was said about the table
            problems += splits_problems(table, splits, list(cases), "splits_final.json")
        break
    return problems
