"""Preprocessed soft labels: beside each unlabelled image, what another model says about it.

They lie in ``nnUNet_preprocessed/D/soft_labels/<data identifier>/`` as cases of nnU-Net whose last channels are
probabilities, one for each output of the network.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.case_files import load_case, read_arrays
from nnunet_mutual.disk.files import read_object
from nnunet_mutual.disk.folders import temporary_folder
from nnunet_mutual.disk.host_files import read_plans
from nnunet_mutual.disk.locate import locate, plans_file
from nnunet_mutual.disk.names import inside
from nnunet_mutual.errors import MutualError, shorten
from nnunet_mutual.preprocessing.unlabelled import ENDINGS, UNLABELLED, unlabelled_keys

SCALE = 255  # steps of a probability, as it is written

SOFT = "soft_labels"


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
    files = {path.name.removesuffix(".npz"): path for path in sorted(Path(folder).glob("*.npz"))}
    if not (Path(folder) / "dataset.json").is_file() or not files:
        raise MutualError(
            f"{folder} holds no soft labels (CASE.npz and dataset.json); make them with nnunet_mutual pseudo_label "
            "--soft or nnUNetv2_predict --save_probabilities"
        )
    order = _order(read_object(Path(folder) / "dataset.json"), content)
    done = 0
    for name in manager.available_configurations:
        configuration = manager.get_configuration(name)
        images = folders.preprocessed / UNLABELLED / configuration.data_identifier
        target = inside(
            folders.preprocessed,
            f"{SOFT}/{configuration.data_identifier}",
            "folder",
            fix="put a folder in place of the link",
        )
        keys = nnUNetDatasetBlosc2.get_identifiers(str(images)) if images.is_dir() else []
        pending = [key for key in sorted(keys) if key in files and not _up_to_date(key, target, images, files[key])]
        done += sum(key in files for key in keys)
        if not pending:
            continue
        target.mkdir(parents=True, exist_ok=True)
        dataset_of_images = nnUNetDatasetBlosc2(str(images), list(pending))
        with temporary_folder(target, "soft", "preprocessing") as scratch:
            for key in tqdm(pending, desc=f"soft labels, {name}", unit="image", file=sys.stderr):
                data, seg, _, properties = load_case(dataset_of_images, key)
                soft = on_grid(
                    _read(files[key])[order], properties, np.asarray(data[:]).shape[1:], manager, configuration, key
                )
                both = np.concatenate([np.asarray(data[:], np.float32), soft])
                nnUNetDatasetBlosc2.save_case(both, np.asarray(seg[:]), properties, str(scratch / key))
                for ending in reversed(ENDINGS):
                    os.replace(scratch / (key + ending), target / (key + ending))
    if not done:
        raise MutualError(
            f"none of the {len(files)} soft labels ({shorten(list(files), 3)}) is of a preprocessed unlabelled image "
            f"of {folders.name}; run nnunet_mutual preprocess_unlabelled -d {folders.number} -p {plans} first"
        )
    print(f"{folders.name}: {done} unlabelled image(s) with soft labels")
    print(f"Next:  nnUNetv2_train {folders.number} 3d_fullres 0 -p {plans} -tr SoftLabelTrainer")


def _read(file: Path) -> NDArray[np.float32]:
    anew = "delete it and run nnunet_mutual pseudo_label --soft (or nnUNetv2_predict --save_probabilities) again"
    arrays = read_arrays(file, anew)
    if "probabilities" not in arrays:
        raise MutualError(f"{file} has no probabilities, but {', '.join(arrays) or 'nothing'}; {anew}")
    found = arrays["probabilities"]
    steps = SCALE if np.issubdtype(found.dtype, np.integer) else 1
    return np.asarray(found, np.float32) / np.float32(steps)


def _up_to_date(key: str, target: Path, images: Path, soft: Path) -> bool:
    made = target / f"{key}.b2nd"
    latest = max(path.stat().st_mtime_ns for path in (images / made.name, soft))
    return made.is_file() and made.stat().st_mtime_ns >= latest


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
    turned = found.transpose([0, *[axis + 1 for axis in forward]])
    expected = tuple(properties["shape_before_cropping"])
    if turned.shape[1:] != expected:
        raise MutualError(
            f"the soft label of {key} has the shape {found.shape[1:]}, its image has another one; predict the image "
            "that is in imagesUn"
        )
    cropped = turned[(slice(None), *bounding_box_to_slice(properties["bbox_used_for_cropping"]))]
    spacing = [properties["spacing"][axis] for axis in forward]
    target = list(configuration.spacing)
    target = [spacing[0], *target] if len(target) < len(spacing) else target
    resampled = np.asarray(configuration.resampling_fn_probabilities(cropped, shape, spacing, target), np.float32)
    return np.clip(resampled, 0, 1)


def soft_dataset(
    preprocessed: Path, identifier: str, table: AnnotationTable, validation_keys: Iterable[str]
) -> nnUNetDatasetBlosc2:
    """Opens the unlabelled images that have soft labels, except those of validation patients.

    Raises:
        MutualError: there are none, with the commands that make them.
    """
    folder = preprocessed / SOFT / identifier
    found = nnUNetDatasetBlosc2.get_identifiers(str(folder)) if folder.is_dir() else []
    if not found:
        raise MutualError(
            f"{preprocessed.name} has no soft labels for {identifier}; make them with nnunet_mutual pseudo_label "
            f"--soft and nnunet_mutual preprocess_unlabelled -d {int(preprocessed.name[7:10])} --soft FOLDER"
        )
    return nnUNetDatasetBlosc2(str(folder), unlabelled_keys(table, found, validation_keys))


def _order(of_soft: Mapping[str, Any], of_dataset: Mapping[str, Any]) -> list[int]:
    """Returns which output of the other model is which of this dataset's, by name; background first."""
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
    return places if ours.is_regions else [0, *(1 + place for place in places)]
