"""Which prediction belongs to which reference, and what the references annotate."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import images_of, read_dataset_json, training_cases
from nnunet_mutual.datasets.sync import refuse_interrupted
from nnunet_mutual.disk.files import natural, read_object
from nnunet_mutual.disk.host_files import read_splits
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.disk.locate import DatasetFolders, locate
from nnunet_mutual.disk.names import require_text
from nnunet_mutual.errors import MutualError, meant, shorten, typed
from nnunet_mutual.evaluation.cases import Pair, Rules
from nnunet_mutual.evaluation.metrics import parse_tolerances
from nnunet_mutual.settings import BLOCK

_OF_TRAINING_CASES = ("labelsTr", "gt_segmentations")  # folders of raw and of preprocessed datasets


@dataclass(frozen=True)
class References:
    """Reference label maps and what they annotate.

    Attributes:
        place: where they lie, for sentences.
        files: case -> label map.
        dataset_json: labels, file ending, and the annotation table; without a table every reference is complete.
        patients: case -> patient, of the cases of which the table names one.
        wanted: the cases that must have a prediction; None: all.
    """

    place: Path
    files: Mapping[str, Path]
    dataset_json: Mapping[str, Any]
    patients: Mapping[str, str]
    wanted: tuple[str, ...] | None = None

    @property
    def ending(self) -> str:
        """File ending of the label maps."""
        return self.dataset_json["file_ending"]

    def table(self) -> AnnotationTable:
        """Returns the annotation table."""
        return AnnotationTable.from_dataset_json(self.dataset_json)

    def rules(self, tolerances: Sequence[str], *, surface: bool) -> Rules:
        """Returns how to measure.

        Args:
            tolerances: words of ``--tolerance``.
            surface: whether to measure surfaces.
        """
        table = self.table()
        return Rules(
            table,
            reader_for(self.dataset_json, list(self.files.values())),
            parse_tolerances(tolerances, table.labels) if surface else None,
        )


def find_references(
    folder: Path | None, *, dataset: str | None, dataset_json: Path | None, fold: str | None, complete: bool
) -> References:
    """Finds the reference label maps.

    Args:
        folder: of references; None takes those of the dataset's training cases.
        dataset: name or ID of the dataset, whose dataset.json says what is annotated.
        dataset_json: a file to read instead; by default the one in the folder of references or the folder above it.
        fold: only validation cases of this fold of the dataset.
        complete: the references draw every label, whatever the annotation table says.

    Raises:
        MutualError: files are missing, or the options do not belong together.
    """
    folders = None if dataset is None else locate(dataset)
    if folders is not None:
        refuse_interrupted(folders)
    if folder is None and folders is None:
        raise MutualError("nothing to compare with: name the folder of REFERENCES, or the dataset with -d")
    if fold is not None and folders is None:
        raise MutualError("-f names a fold of a dataset; name the dataset with -d")
    if dataset_json is not None:
        content = read_object(dataset_json)
    elif folders is not None:
        content = read_dataset_json(_of_dataset(folders))
    else:
        assert folder is not None
        content = read_dataset_json(_beside(folder))
    if not isinstance(content.get("file_ending"), str):
        raise MutualError(f'{dataset_json} has no "file_ending"; add it, for example "file_ending": ".nii.gz"')
    patients = AnnotationTable.from_dataset_json(content).patients
    if complete:
        content = {key: value for key, value in content.items() if key != BLOCK}
    if folder is not None:
        place, files = folder, _label_maps(folder, content["file_ending"])
    else:
        assert folders is not None
        place, files = _training_labels(folders, content)
    wanted = None if fold is None or folders is None else _validation_cases(folders, fold, files)
    return References(place, files, content, patients, wanted)


def pair_up(predictions: Path, references: References, *, chill: bool) -> list[Pair]:
    """Pairs the label maps of a folder of predictions with their references.

    A case that annotates nothing is left out.

    Args:
        predictions: folder of label maps.
        references: from :func:`find_references`.
        chill: whether predictions may be missing (nnU-Net's word).

    Raises:
        MutualError: a prediction or a reference is missing, or a case is not in the table.
    """
    found = _label_maps(predictions, references.ending)
    unknown = [key for key in found if key not in references.files]
    if unknown:
        raise MutualError(
            f"{predictions} holds {len(unknown)} label map(s) without a reference in {references.place}: "
            f"{shorten(unknown)}{meant(unknown[0], references.files)}; {_where_from(predictions, found, references)}"
        )
    table = references.table()
    try:
        table.require(found)
    except MutualError as error:
        raise MutualError(f"{error}; or, if the references draw every label, add --complete") from None
    wanted = [
        key
        for key in (references.files if references.wanted is None else references.wanted)
        if not table.declared or key not in table.cases or table.case(key).annotated
    ]
    absent = [key for key in wanted if key not in found]
    if absent and not chill:
        raise MutualError(
            f"{predictions} lacks {len(absent)} of {len(wanted)} cases of {references.place}: {shorten(absent)}; "
            "predict them, name the fold that was predicted with -d and -f, or add --chill to leave them out"
        )
    keys = [key for key in wanted if key in found]
    if not keys:
        raise MutualError(f"{predictions} holds none of the cases to be scored: {shorten(wanted)}; check -f")
    return [Pair(key, found[key], references.files[key]) for key in keys]


def _where_from(predictions: Path, found: Collection[str], references: References) -> str:
    """Says what to do about predictions without a reference; nnU-Net knows label maps of training cases only."""
    folder = references.place.parent
    tests = images_of(folder / "imagesTs", references.ending)[0]
    others = any(key in tests for key in found)
    if references.place.name not in _OF_TRAINING_CASES or not (others or references.files.keys().isdisjoint(found)):
        return "add the reference, or move the file away"
    drawn = typed(folder / "labelsTs") if (folder / "labelsTs").is_dir() else "REFERENCES"
    command = f"nnunet_mutual evaluate {typed(predictions)} {drawn} -d {folder.name}"
    return (
        f"these are {'images of imagesTs' if others else 'no training cases'}, so name the folder with their reference "
        f"label maps: {command}{' --complete' * (BLOCK in references.dataset_json)}"
    )


def _of_dataset(folders: DatasetFolders) -> Path:
    folder = folders.raw or folders.preprocessed
    assert folder is not None  # locate() found it in one of them
    return folder


def _beside(folder: Path) -> Path:
    """Returns the folder of the dataset.json that belongs to label maps: their own, or that above labelsTr."""
    for candidate in (folder, folder.resolve().parent):
        if (candidate / "dataset.json").is_file():
            return candidate
    raise MutualError(
        f"neither {folder} nor the folder above it has a dataset.json, which says what the integers mean; name it with "
        "-djfile FILE, or the dataset with -d"
    )


def _label_maps(folder: Path, ending: str) -> dict[str, Path]:
    """Returns case -> file in natural order."""
    if not folder.is_dir():
        raise MutualError(f"{folder} is not a folder; name the folder of the label maps")
    files = {
        path.name.removesuffix(ending): path
        for path in folder.iterdir()
        if path.name.endswith(ending) and not path.name.startswith(".")
    }
    for path in files.values():
        require_text(path)
    if not files:
        raise MutualError(
            f'{folder} holds no label map (*{ending}); check the folder and "file_ending" of dataset.json'
        )
    return {key: files[key] for key in sorted(files, key=natural)}


def _training_labels(folders: DatasetFolders, content: Mapping[str, Any]) -> tuple[Path, dict[str, Path]]:
    if folders.raw is None:
        place = _of_dataset(folders) / _OF_TRAINING_CASES[1]
        return place, _label_maps(place, content["file_ending"])
    cases = training_cases(folders.raw, content)[0]
    return folders.raw / _OF_TRAINING_CASES[0], {key: files.label for key, files in cases.items()}


def _validation_cases(folders: DatasetFolders, fold: str, files: Mapping[str, Path]) -> tuple[str, ...]:
    if fold == "all":
        return tuple(files)
    if folders.preprocessed is None or not (folders.preprocessed / "splits_final.json").is_file():
        raise MutualError(f"{folders.name} has no splits_final.json in nnUNet_preprocessed yet; leave -f out")
    splits = read_splits(folders.preprocessed / "splits_final.json")
    if not fold.isdecimal() or int(fold) >= len(splits):
        raise MutualError(
            f"-f {fold}: splits_final.json of {folders.name} has the folds 0 to {len(splits) - 1}, or all"
        )
    return tuple(splits[int(fold)]["val"])
