"""What may be drawn next: labels that nobody drew, in cases that no fold validates and nobody tests with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import CaseFiles, images_of, read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.splits import require_fold
from nnunet_mutual.disk.host_files import read_splits
from nnunet_mutual.disk.locate import DatasetFolders
from nnunet_mutual.engine.window import Window
from nnunet_mutual.errors import MutualError
from nnunet_mutual.preprocessing.unlabelled import unlabelled_dataset
from nnunet_mutual.pseudo_labels.review.arrivals import declared, require_other_names, with_unlabelled


@dataclass(frozen=True)
class Pool:
    """The cases of a dataset in which something may be drawn.

    Attributes:
        content: of the raw dataset.json.
        table: its annotation table, with the images of imagesUn as cases that annotate nothing.
        listed: the images of imagesUn whose source the table says.
        files: raw files of every training case and image.
        drawn: nnU-Net's dataset of the cases that the networks may have learnt from.
        parts: nnU-Net's datasets of the cases to draw in: partly drawn ones, and images of imagesUn.
    """

    content: dict[str, Any]
    table: AnnotationTable
    listed: frozenset[str]
    files: Mapping[str, CaseFiles]
    drawn: Any
    parts: Sequence[Any]

    def cases(self) -> Iterator[tuple[Any, str]]:
        """Yields each case to draw in, with its dataset."""
        for part in self.parts:
            for key in part.identifiers:
                yield part, key


def open_pool(folders: DatasetFolders, window: Window, folds: Sequence[str]) -> Pool:
    """Opens what may be drawn next.

    Left out are the validation cases of the folds, the images of imagesTs, and every other case of their patients.

    Args:
        folders: of the dataset.
        window: of the networks that will be asked.
        folds: that they were trained in.

    Raises:
        MutualError: nothing may be drawn; says whether there is nothing, or nothing outside of validation and test.
    """
    assert folders.raw is not None and folders.preprocessed is not None
    content = read_dataset_json(folders.raw)
    files, _ = training_cases(folders.raw, content)
    table = AnnotationTable.from_dataset_json(declared(content, files))
    images, _ = unlabelled_cases(folders.raw, content, files)
    require_other_names(folders.raw, images, files)
    data = folders.preprocessed / window.configuration.data_identifier
    kind = infer_dataset_class(str(data))
    keys = [key for key in sorted(kind.get_identifiers(str(data))) if key in files]
    table.require(keys)
    apart = _validated(folders.preprocessed / "splits_final.json", folds)
    apart |= set(images_of(folders.raw / "imagesTs", content["file_ending"])[0])
    patients = {table.cases[key].patient for key in apart if key in table.cases} - {None}
    used = [key for key in keys if key not in apart and table.case(key).patient not in patients]
    everything = frozenset(table.labels)
    partly = [key for key in keys if everything - table.case(key).annotated]
    parts: list[Any] = [kind(str(data), [key for key in partly if key in used])]
    found = None
    if images:
        known = [key for key in apart if key in table.cases]
        found = unlabelled_dataset(folders.preprocessed, window.plans, window.configuration, table, known)
    if found is not None:
        found.identifiers = [key for key in found.identifiers if key in images and key not in apart]
        parts.append(found)
    if not any(part.identifiers for part in parts):
        raise MutualError(_nothing(folders, bool(images or partly), folds))
    listed = frozenset(key for key in images if key in table.cases)
    learnt = kind(str(data), used)
    return Pool(content, with_unlabelled(table, images), listed, {**images, **files}, learnt, parts)


def _validated(splits_file: Path, folds: Iterable[str]) -> set[str]:
    """Returns the validation cases of folds."""
    numbers = [int(fold) for fold in folds if fold != "all"]
    splits = read_splits(splits_file) if numbers else []
    for number in numbers:
        require_fold(splits, number, splits_file)
    return {key for number in numbers for key in splits[number]["val"]}


def _nothing(folders: DatasetFolders, there: bool, folds: Sequence[str]) -> str:
    if not there:
        return (
            f"{folders.name} has no image in imagesUn, and every case annotates every label, so there is nothing to "
            f"draw; put further images into {folders.raw}/imagesUn and run nnunet_mutual preprocess_unlabelled -d "
            f"{folders.number}"
        )
    return (
        f"every image and every partly drawn case of {folders.name} is of a patient of validation (fold "
        f"{', '.join(folds)}) or test, and these are never suggested; name other folds with -f, or put further images "
        "into imagesUn"
    )
