"""The patients that arms are scored on: held out of the dataset, or of a dataset of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_mutual.datasets.new_dataset import place_images, place_label_map
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.datasets.splits import require_fold, stratified_splits
from nnunet_mutual.disk.files import write_json
from nnunet_mutual.disk.folders import finish, not_written, temporary_folder
from nnunet_mutual.disk.host_files import read_splits
from nnunet_mutual.disk.images import read_label_map, reader_for, write_label_map
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.preprocessing.unlabelled import unlabelled_keys
from nnunet_mutual.settings import BLOCK
from nnunet_mutual.trial.both_sides import require_apart
from nnunet_mutual.trial.raw_data import Division, RawData


def divide(data: RawData, preprocessed: Path, fold: str) -> Division:
    """Holds out the validation patients of a fold, as splits_final.json says; without that file, of the usual folds.

    Args:
        data: the dataset.
        preprocessed: its folder in nnUNet_preprocessed, which is only read.
        fold: number of the fold.

    Raises:
        MutualError: there is no such fold, it does not fit the dataset, or somebody is on both sides.
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
    division = Division(training, {key: data.unlabelled[key] for key in seen}, scored, data)
    require_apart(data, division, f"correct {file}, or delete it to get new folds")
    return division


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
    division = Division(data.training, data.unlabelled, test.training, test)
    require_apart(data, division, f"remove it from {data.name} or from {test.name}")
    return division


def require_shown(division: Division, labels: Mapping[str, Any]) -> None:
    """Verifies that the scored cases show something; nothing can be learnt about trainers where nothing is to be found.

    Args:
        division: whom they are.
        labels: "labels" of the dataset that is trained on.

    Raises:
        MutualError: none has a voxel of a label that it annotates.
    """
    content, table = division.source.content, division.source.table
    reader = reader_for(content, [path for files in division.scored.values() for path in files.images.values()])
    for key, files in division.scored.items():
        integers = [labels[name] for name in table.case(key).annotated if name in labels]
        voxels = _translated(read_label_map(reader, files.label)[0], content["labels"], labels)
        if np.isin(voxels, np.hstack([0, *integers])[1:]).any():
            return
    raise MutualError(
        f"no label that is annotated has a voxel in any of the {len(division.scored)} case(s) of "
        f"{division.source.name} that would be scored, so no trainer could be better there; draw them, or score others "
        "(-f, --test)"
    )


def write_dataset(
    place: Path,
    data: RawData,
    training: Mapping[str, CaseFiles],
    unlabelled: Mapping[str, CaseFiles],
    labels: Mapping[str, Any] | None = None,
) -> None:
    """Makes a dataset of cases of another one, whole or not at all.

    Images are linked, label maps are copied: they are corrected, and often saved in their place.

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
                    place_label_map(files.label, target, copy=True)
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
