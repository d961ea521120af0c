"""Preprocessed soft labels: beside each unlabelled image, what another model says about it.

They lie in ``nnUNet_preprocessed/D/soft_labels/<data identifier>/`` as cases of nnU-Net whose last channels are
probabilities, one for each output of the network. ``soft_labels/<data identifier>.jsonl`` says what each was made of.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.next_step import Contents
from nnunet_mutual.datasets.splits import first_fold
from nnunet_mutual.disk.case_files import load_case, read_properties
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.folders import temporary_folder
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.locate import locate, plans_file
from nnunet_mutual.disk.trainings import train_command
from nnunet_mutual.disk.writing import full_disk_named, require_space
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.preprocessing.soft_folder import SoftFolder, read_soft
from nnunet_mutual.preprocessing.unlabelled import (
    ENDINGS,
    SOFT,
    UNLABELLED,
    add_to_record,
    folder_of,
    plans_fingerprint,
    read_record,
    record_of,
    refuse_withdrawn,
    unlabelled_keys,
    write_record,
)


def preprocess_soft(dataset: str | int, folder: str, *, plans: str) -> None:
    """Brings soft labels onto the grid of the preprocessed unlabelled images.

    Args:
        dataset: ID or name of the dataset whose images get soft labels; the images are preprocessed.
        folder: ``<case>.npz`` with ``probabilities`` (K, Z, Y, X) in the geometry of the images, and a dataset.json
            that names their labels: of ``nnunet_mutual pseudo_label --soft`` or nnU-Net's ``--save_probabilities``.
        plans: name of the plans file without .json.

    Raises:
        MutualError: other labels, another grid, or no soft label for any image.
    """
    folders = locate(dataset, need_preprocessed=True)
    assert folders.preprocessed is not None
    manager = PlansManager(read_plans(plans_file(folders.preprocessed, plans)))
    content = read_object(folders.preprocessed / "dataset.json")
    files = SoftFolder(Path(folder)).labels()
    if not (Path(folder) / "dataset.json").is_file() or not files:
        raise MutualError(
            f"{folder} holds no soft labels (CASE.npz and dataset.json); make them with nnunet_mutual pseudo_label "
            "--soft or nnUNetv2_predict --save_probabilities"
        )
    outputs, order = _order(read_object(Path(folder) / "dataset.json"), content)
    source = _Source(files, outputs, order, _hashes(files))
    command = f"nnunet_mutual preprocess_unlabelled -d {folders.number} -p {plans}"
    first: dict[str, str] = {}  # configurations may share data
    for name in manager.available_configurations:
        first.setdefault(manager.get_configuration(name).data_identifier, name)
    used = {name: _update(source, folders.preprocessed, manager, name, command) for name in first.values()}
    trained = [name for name, keys in used.items() if keys]
    if not trained:
        raise MutualError(
            f"none of the {len(files)} soft labels ({shorten(list(files), 3)}) is of a preprocessed unlabelled image "
            f"of {folders.name}; run {command} first"
        )
    idle = sorted(set(files).difference(*used.values()))
    if idle:
        print(f"Not used, since no such unlabelled image is preprocessed: {len(idle)} soft label(s) ({shorten(idle)})")
    chosen = "3d_fullres" if "3d_fullres" in trained else trained[0]
    contents = Contents.of_planned(folders)
    fold = first_fold(folders.preprocessed, contents.table, contents.cases)
    print(f"Next:  {train_command(folders.number, chosen, 'SoftLabelTrainer', plans=plans, fold=fold)}")


@dataclass(frozen=True)
class _Source:
    """Soft labels of another model: files, number of outputs, which of them are ours, hashes of the files."""

    files: Mapping[str, Path]
    outputs: int
    order: Sequence[int]
    hashes: Mapping[str, str]

    def read(self, key: str) -> NDArray[np.float32]:
        return read_soft(self.files[key], self.outputs)[list(self.order)]


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in files.items()}


def _update(source: _Source, preprocessed: Path, manager: PlansManager, name: str, command: str) -> set[str]:
    """Makes the soft labels of a configuration those of the source, and no others; returns whose they are."""
    configuration = manager.get_configuration(name)
    images = preprocessed / UNLABELLED / configuration.data_identifier
    target = folder_of(preprocessed, SOFT, configuration.data_identifier)
    keys = set(nnUNetDatasetBlosc2.get_identifiers(str(images))) if images.is_dir() else set()
    refuse_withdrawn(preprocessed, keys, command)
    there = {path.name for path in target.iterdir()} if target.is_dir() else set()
    made_of = read_record(record_of(images))
    fingerprint = plans_fingerprint(manager.plans, configuration)
    wanted = {
        key: {"soft": source.hashes[key], "order": list(source.order), "plans": fingerprint, "image": made_of.get(key)}
        for key in sorted(keys & source.files.keys())
    }
    done = {
        key: line
        for key, line in read_record(record_of(target)).items()
        if wanted.get(key) == line and all(key + ending in there for ending in ENDINGS)
    }
    surplus = sorted(there - {key + ending for key in wanted for ending in ENDINGS})
    pending = [key for key in wanted if key not in done]
    if keys or there:
        print(
            f"{target.name}: {len(wanted)} of {len(keys)} unlabelled images have soft labels, {len(done)} up to date, "
            f"{len(pending)} to preprocess, {sum(file.endswith('.pkl') for file in surplus)} to remove"
        )
    dataset = nnUNetDatasetBlosc2(str(images), pending)
    for key in tqdm(pending, desc=f"reading soft labels, {name}", unit="image", file=sys.stderr, disable=not pending):
        properties = read_properties(images / f"{key}.pkl")
        _require_grid(source.read(key), properties, manager.transpose_forward, key)  # before anything is written
    if pending or surplus:
        require_space(preprocessed)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(surplus, key=lambda file: file.endswith(("_seg.b2nd", ".pkl"))):
            (target / file).unlink()
        write_record(record_of(target), done)
        with temporary_folder(target, "soft", "preprocessing") as scratch:
            for key in tqdm(pending, desc=f"soft labels, {name}", unit="image", file=sys.stderr, disable=not pending):
                data, seg, _, properties = load_case(dataset, key)
                image = np.asarray(data[:], np.float32)
                soft = on_grid(source.read(key), properties, image.shape[1:], manager, configuration, key)
                both = np.concatenate([image, soft])
                with full_disk_named(scratch):
                    nnUNetDatasetBlosc2.save_case(both, np.asarray(seg[:]), properties, str(scratch / key))
                for ending in reversed(ENDINGS):
                    os.replace(scratch / (key + ending), target / (key + ending))
                add_to_record(record_of(target), key, wanted[key])
    return set(wanted)


def on_grid(
    found: NDArray[np.float32],
    properties: Mapping[str, Any],
    shape: tuple[int, ...],
    plans: PlansManager,
    configuration: ConfigurationManager,
    key: str,
) -> NDArray[np.float32]:
    """Transposes, crops and resamples probabilities as nnU-Net does it with the image.

    Args:
        found: (K, Z, Y, X) probabilities in the geometry of the image.
        properties: nnU-Net's, of the preprocessed image.
        shape: of the preprocessed image.
        plans: of the dataset.
        configuration: likewise.
        key: of the case, for the message.

    Returns:
        (K, *shape) probabilities from 0 to 1.

    Raises:
        MutualError: the grid is not that of the image.
    """
    forward = plans.transpose_forward
    turned = _require_grid(found, properties, forward, key)
    cropped = turned[(slice(None), *bounding_box_to_slice(properties["bbox_used_for_cropping"]))]
    spacing = [properties["spacing"][axis] for axis in forward]
    target = list(configuration.spacing)
    target = [spacing[0], *target] if len(target) < len(spacing) else target
    resampled = np.asarray(configuration.resampling_fn_probabilities(cropped, shape, spacing, target), np.float32)
    return np.clip(resampled, 0, 1)


def _require_grid(
    found: NDArray[np.float32], properties: Mapping[str, Any], forward: Sequence[int], key: str
) -> NDArray[np.float32]:
    """Returns probabilities with their axes in the order of the preprocessed image."""
    turned = found.transpose([0, *[axis + 1 for axis in forward]])
    if turned.shape[1:] != tuple(properties["shape_before_cropping"]):
        raise MutualError(
            f"the soft label of {key} has the shape {found.shape[1:]}, its image has another one; predict the image "
            "that is in imagesUn"
        )
    return turned


def soft_dataset(
    preprocessed: Path,
    plans: PlansManager,
    configuration: ConfigurationManager,
    table: AnnotationTable,
    validation_keys: Iterable[str],
    channels: int,
) -> nnUNetDatasetBlosc2:
    """Opens the unlabelled images that have soft labels, except those of validation patients.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed.
        plans: of the training.
        configuration: likewise.
        table: the annotation table.
        validation_keys: validation cases of the fold.
        channels: of the image and outputs of the network, together.

    Raises:
        MutualError: there are none, or they were made of other images or with other plans; with the commands that
            make them.
    """
    images, folder = (preprocessed / kind / configuration.data_identifier for kind in (UNLABELLED, SOFT))
    command = f"nnunet_mutual preprocess_unlabelled -d {int(preprocessed.name[7:10])} -p {plans.plans_name}"
    found = set(nnUNetDatasetBlosc2.get_identifiers(str(folder))) if folder.is_dir() else set()
    found &= set(nnUNetDatasetBlosc2.get_identifiers(str(images))) if images.is_dir() else set()
    if not found:
        raise MutualError(
            f"{preprocessed.name} has no soft labels for {folder.name}; make them with nnunet_mutual pseudo_label "
            f"--soft and {command} --soft FOLDER"
        )
    refuse_withdrawn(preprocessed, found, command)
    if record_of(folder).is_file():  # not what version 0.1.0 made
        made_of, record = read_record(record_of(images)), read_record(record_of(folder))
        now = plans_fingerprint(plans.plans, configuration)
        old = [key for key in found if not _is_current(record.get(key), made_of.get(key), now)]
        _refuse(old, f"were made of other images or with other plans, or not to the end; run {command} --soft FOLDER")
    wrong = [k for k in found if blosc2.open(urlpath=str(folder / f"{k}.b2nd"), mode="r").shape[0] != channels]
    _refuse(wrong, f"have not the {channels} channels of image and labels together; run {command} --soft FOLDER")
    return nnUNetDatasetBlosc2(str(folder), unlabelled_keys(table, found, validation_keys))


def _is_current(line: Mapping[str, Any] | None, image: Mapping[str, Any] | None, plans: str) -> bool:
    return line is not None and line.get("image") == image and line.get("plans") == plans


def _refuse(keys: Sequence[str], why: str) -> None:
    if keys:
        raise MutualError(f"{len(keys)} soft label(s) ({shorten(sorted(keys), 3)}) {why}")


def _order(of_soft: Mapping[str, Any], of_dataset: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Returns the number of outputs of the other model, and which is which of this dataset's; background first."""
    theirs, ours = (AnnotationTable.from_dataset_json(content) for content in (of_soft, of_dataset))
    if theirs.is_regions != ours.is_regions:
        raise MutualError("one of the two models has regions, the other plain labels; they must be of the same kind")
    absent = [label for label in ours.labels if label not in theirs.labels]
    if absent:
        raise MutualError(f"the soft labels say nothing of {', '.join(absent)}; they have: {', '.join(theirs.labels)}")
    if not ours.is_regions and set(theirs.labels) != set(ours.labels):
        extra = sorted(set(theirs.labels) - set(ours.labels))
        raise MutualError(f"the soft labels have {', '.join(extra)}, too, which this dataset does not know")
    places = [theirs.labels.index(label) for label in ours.labels]
    if ours.is_regions:
        return len(theirs.labels), places
    return 1 + len(theirs.labels), [0, *(1 + place for place in places)]
