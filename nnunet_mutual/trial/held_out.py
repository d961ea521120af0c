"""The patients that arms are scored on: held out of the dataset, or of a dataset of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.new_dataset import place_images, place_label_map
from nnunet_mutual.datasets.problems import ERROR
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.splits import require_fold, stratified_splits
from nnunet_mutual.datasets.sync import refuse_interrupted
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.folders import finish, not_written, temporary_folder
from nnunet_mutual.disk.host_files import read_splits
from nnunet_mutual.disk.images import read_label_map, reader_for, write_label_map
from nnunet_mutual.disk.locate import DatasetFolders
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.preprocessing.unlabelled import unlabelled_keys
from nnunet_mutual.settings import BLOCK


@dataclass(frozen=True)
class RawData:
    """A raw dataset, listed and without errors.

    Attributes:
        name: of the dataset.
        content: of its dataset.json.
        table: its annotation table.
        training: its training cases.
        unlabelled: its images without labels.
    """

    name: str
    content: Mapping[str, Any]
    table: AnnotationTable
    training: Mapping[str, CaseFiles]
    unlabelled: Mapping[str, CaseFiles]

    @classmethod
    def read(cls, folders: DatasetFolders) -> RawData:
        """Lists a raw dataset.

        Raises:
            MutualError: it has errors, or an accept was interrupted in it.
        """
        assert folders.raw is not None
        refuse_interrupted(folders)
        content = read_dataset_json(folders.raw)
        table = AnnotationTable.from_dataset_json(content)
        training, problems = training_cases(folders.raw, content)
        unlabelled, more = unlabelled_cases(folders.raw, content, training)
        table.require(training)
        errors = [problem for problem in problems + more if problem.severity == ERROR]
        if errors:
            raise MutualError(
                f"{folders.name}/{errors[0].place}: {errors[0].text} (nnunet_mutual check {folders.name} lists all)"
            )
        return cls(folders.name, content, table, training, unlabelled)

    def patients(self, keys: Sequence[str]) -> dict[str, str]:
        """Returns case -> patient; a case without one is its own."""
        return {key: self.table.patients.get(key, key) for key in keys}

    def unscored_in_part(self) -> str:
        """Says which labels are drawn in part, and so have no Dice there; else nothing."""
        cases = [self.table.case(key) for key in self.training]
        numbers = {label: sum(label in case.incomplete for case in cases) for label in self.table.labels}
        said = ", ".join(f"{label} in {number} of them" for label, number in numbers.items() if number)
        return f"; drawn in part, so not scored there: {said}" if said else ""


@dataclass(frozen=True)
class Division:
    """Which cases are trained on, which are scored.

    Attributes:
        training: cases that arms may learn from.
        unlabelled: images without labels that they may see.
        scored: cases that they are scored on.
        source: the dataset of the scored cases.
    """

    training: Mapping[str, CaseFiles]
    unlabelled: Mapping[str, CaseFiles]
    scored: Mapping[str, CaseFiles]
    source: RawData


def divide(data: RawData, preprocessed: Path, fold: str) -> Division:
    """Holds out the validation patients of a fold, as splits_final.json says; without that file, of the usual folds.

    Args:
        data: the dataset.
        preprocessed: its folder in nnUNet_preprocessed, which is only read.
        fold: number of the fold.

    Raises:
        MutualError: there is no such fold, or it does not fit the dataset.
    """
    file = preprocessed / "splits_final.json"
    splits = read_splits(file) if file.is_file() else stratified_splits(data.table, list(data.training))
    require_fold(splits, int(fold), file)
    part = splits[int(fold)]
    if unknown := sorted({*part["train"], *part["val"]} - {*data.training}):
        raise MutualError(
            f"{file} names {len(unknown)} case(s) that nnUNet_raw does not have ({shorten(unknown)}); correct it, or "
            "delete that file to get new folds"
        )
    scored = {key: data.training[key] for key in part["val"] if data.table.case(key).annotated}
    if not scored:
        raise MutualError(f"no validation case of fold {fold} draws anything, so there is nothing to score; choose -f")
    seen = unlabelled_keys(data.table, data.unlabelled, part["val"])
    training = {key: data.training[key] for key in part["train"]}
    return Division(training, {key: data.unlabelled[key] for key in seen}, scored, data)


def score_on(data: RawData, test: RawData) -> Division:
    """Scores on another dataset, which draws every label in every case; all of ``data`` is trained on.

    Raises:
        MutualError: it does not, has other channels or labels, or holds the same patients or images.
    """
    if test.table.channels != data.table.channels:
        raise MutualError(
            f"{test.name} has the channels {', '.join(test.table.channels)}, {data.name} has "
            f"{', '.join(data.table.channels)}; give --test a dataset of the same channels"
        )
    for key in test.training:
        absent = [label for label in data.table.labels if label not in test.table.case(key).annotated]
        if absent:
            raise MutualError(
                f"--test {test.name} must draw every label of {data.name}, but its case {key} does not draw "
                f"{', '.join(absent)}; leave such cases out, since what nobody drew cannot be scored"
            )
    both = data.content["labels"], test.content["labels"]
    if both[0] != both[1] and (data.table.is_regions or test.table.is_regions or any("ignore" in one for one in both)):
        raise MutualError(
            f'the "labels" of {test.name} and {data.name} differ, which a trial translates only without regions and '
            "ignore label; write the same into both"
        )
    own, other = ({case.patient for case in found.table.cases.values()} - {None} for found in (data, test))
    if shared := sorted(own & other, key=str):
        raise MutualError(
            f"patient {shared[0]} is in {data.name} and in {test.name}, so the scores would be too good; remove the "
            "patient from one of them"
        )
    if same := _same_image([*data.training.values(), *data.unlabelled.values()], list(test.training.values())):
        raise MutualError(
            f"{same[1]} is the same file as {same[0]}, which is trained on, so the scores would be too good; remove it "
            "from one of the datasets"
        )
    return Division(data.training, data.unlabelled, test.training, test)


def _same_image(training: Sequence[CaseFiles], test: Sequence[CaseFiles]) -> tuple[Path, Path] | None:
    """Returns two files with the same content, if there are any; only files of one size are read."""
    by_size: dict[int, list[Path]] = {}
    for path in (path for files in training for path in files.images.values()):
        by_size.setdefault(path.stat().st_size, []).append(path)
    known: dict[Path, str] = {}
    for path in (path for files in test for path in files.images.values()):
        for other in by_size.get(path.stat().st_size, ()):
            for one in (path, other):
                known.setdefault(one, hashlib.sha256(one.read_bytes()).hexdigest())
            if known[path] == known[other]:
                return other, path
    return None


def write_dataset(
    place: Path,
    data: RawData,
    training: Mapping[str, CaseFiles],
    unlabelled: Mapping[str, CaseFiles],
    labels: Mapping[str, Any] | None = None,
) -> None:
    """Links cases of a raw dataset as a dataset of their own, whole or not at all.

    Args:
        place: the new folder.
        data: the dataset of the cases.
        training: cases with label maps.
        unlabelled: images without.
        labels: "labels" of dataset.json, where the label maps are to be translated; the same names and more are known
            to ``data``.

    Raises:
        MutualError: the disk is full or cannot be written; nothing is left behind.
    """
    kept = {**training, **unlabelled}
    content = {key: value for key, value in data.content.items() if key != "dataset"}
    content |= {"name": place.name, "numTraining": len(training)}
    ending = content["file_ending"]
    if data.table.declared:
        block = data.content[BLOCK]
        content[BLOCK] = {**block, "cases": {key: entry for key, entry in block["cases"].items() if key in kept}}
    translate = labels is not None and labels != data.content["labels"]
    if translate:
        content = {key: value for key, value in content.items() if key != BLOCK} | _renamed(data, kept, labels or {})
    with temporary_folder(place, "trial", "preparing") as folder:
        try:
            for name in ("imagesTr", "labelsTr", *["imagesUn"] * bool(unlabelled)):
                (folder / name).mkdir()
            reader = reader_for(content, [path for files in training.values() for path in files.images.values()])
            for key, files in kept.items():
                where = "imagesTr" if key in training else "imagesUn"
                place_images(files, folder / where, key, ending, copy=False)
                if key not in training:
                    continue
                target = folder / "labelsTr" / (key + ending)
                if files.label.name.endswith(ending) and not translate:
                    place_label_map(files.label, target, copy=False)
                else:
                    voxels, properties = read_label_map(reader, files.label)
                    write_label_map(
                        reader, _translated(voxels, data.content["labels"], content["labels"]), target, properties
                    )
            write_json(folder / "dataset.json", content)
            finish(folder, place)
        except (OSError, RuntimeError) as error:  # SimpleITK reports a full disk as RuntimeError
            raise not_written(place, error) from None


def _renamed(data: RawData, kept: Iterable[str], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Returns "labels", all drawn in every case, and of the annotation table what it says of patients and channels."""
    found: dict[str, Any] = {"labels": dict(labels)}
    if data.table.declared:
        block, drawn = data.content[BLOCK], [name for name in labels if name != "background"]
        of_cases = {key: entry for key, entry in block["cases"].items() if key in kept}
        cases = {
            key: {"source": data.name, **{word: entry[word] for word in ("patient", "missing") if word in entry}}
            for key, entry in of_cases.items()
        }
        groups = {word: block[word] for word in ("version", "modality_groups") if word in block}
        found[BLOCK] = {**groups, "sources": {data.name: {"annotated": drawn}}, "cases": cases}
    return found


def _translated(voxels: np.ndarray, old: Mapping[str, Any], new: Mapping[str, Any]) -> np.ndarray:
    """Returns a label map with the integers of another dataset.json; labels that it does not have become 0."""
    if old == new:
        return voxels
    table = np.zeros(max(int(voxels.max()), *map(int, old.values())) + 1, np.uint8)
    for name, value in old.items():
        table[int(value)] = int(new.get(name, 0))
    return table[voxels]
