"""The preprocessed unlabelled images, as later trainers open them, and the record of what they were made from.

They lie in ``nnUNet_preprocessed/D/unlabelled/<data identifier>/`` (every ``.b2nd`` in the folder of the labelled cases
would be training data for stock trainers), the record one level up, in ``unlabelled/<data identifier>.jsonl``, because
nnU-Net knows the kind of a data folder by the file endings in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, unlabelled_cases
from nnunet_mutual.disk.images import sidecar
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.disk.names import inside
from nnunet_mutual.disk.writing import written
from nnunet_mutual.errors import MutualError, shorten

UNLABELLED = "unlabelled"
SOFT = "soft_labels"  # beside it; see soft_labels.py
ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")  # a case is complete when the first one, which lists it, is there
# What the voxels depend on; the patch size decides about chunks on the disk only.
_OF_PLANS = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel", PLANS_KEY)
_OF_CONFIGURATION = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


def folder_of(preprocessed: Path, kind: str, data_identifier: str) -> Path:
    """Returns the folder of the images or soft labels of a configuration, in which what is surplus is deleted.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed.
        kind: ``UNLABELLED`` or ``SOFT``.
        data_identifier: of the configuration.

    Raises:
        MutualError: it lies elsewhere, by its name or through a link.
    """
    return inside(preprocessed, f"{kind}/{data_identifier}", "folder", fix="put a folder in place of the link")


def unlabelled_keys(
    table: AnnotationTable, identifiers: Iterable[str], validation_keys: Iterable[str] = ()
) -> list[str]:
    """Returns the unlabelled images that a fold may train with: not those of its validation patients.

    Args:
        table: the annotation table; an image that it does not list belongs to nobody known.
        identifiers: unlabelled images.
        validation_keys: validation cases of the fold.
    """
    patients = {table.case(key).patient for key in validation_keys} - {None}
    return sorted(key for key in identifiers if key not in table.cases or table.cases[key].patient not in patients)


def unlabelled_dataset(
    preprocessed: Path,
    plans: PlansManager,
    configuration: ConfigurationManager,
    table: AnnotationTable,
    validation_keys: Iterable[str] = (),
    say: Callable[[str], Any] = print,
) -> nnUNetDatasetBlosc2 | None:
    """Opens the preprocessed unlabelled images of a configuration for one fold.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed.
        plans: plans of the training.
        configuration: of the training.
        table: the annotation table.
        validation_keys: validation cases of the fold, whose patients' images are left out.
        say: is told of images that are not used, or not as they are now.

    Returns:
        The dataset, or None if there are no unlabelled images.

    Raises:
        MutualError: the images wait in imagesUn, were preprocessed with other plans or as if they lacked other
            channels, or have been withdrawn from imagesUn; with the command that mends it.
    """
    identifier = configuration.data_identifier
    folder = preprocessed / UNLABELLED / identifier
    command = f"nnunet_mutual preprocess_unlabelled -d {int(preprocessed.name[7:10])} -p {plans.plans_name}"
    found = nnUNetDatasetBlosc2.get_identifiers(str(folder)) if folder.is_dir() else []
    if not found:
        raw = locate(preprocessed.name).raw
        if raw is not None and unlabelled_cases(raw, read_dataset_json(raw), ())[0]:
            raise MutualError(
                f"the images in {raw / 'imagesUn'} are not preprocessed for {identifier}; run {command} first"
            )
        return None
    refuse_withdrawn(preprocessed, found, command)
    record = read_record(record_of(folder))
    now = plans_fingerprint(plans.plans, configuration)
    old = sorted(key for key in found if record.get(key, {}).get("plans") != now)
    if old:
        raise MutualError(
            f"{len(old)} unlabelled image(s) in {folder} were preprocessed with other plans ({shorten(old, 3)}); run "
            f"{command}"
        )
    if PLANS_KEY in plans.plans:
        lacks = {key: sorted(table.cases[key].missing) if key in table.cases else [] for key in found}
        other = sorted(key for key in found if record[key].get("missing", []) != lacks[key])
        if other:
            raise MutualError(
                f"dataset.json says now that other channels of {len(other)} unlabelled image(s) are missing than when "
                f"they were preprocessed ({shorten(other, 3)}); run {command}"
            )
    if behind := _not_up_to_date(preprocessed, record):
        say(
            f"WARNING: {len(behind)} image(s) of imagesUn are new or changed since they were preprocessed, and are "
            f"not used as they are now ({shorten(behind, 3)}); for that, run {command}"
        )
    return nnUNetDatasetBlosc2(str(folder), unlabelled_keys(table, found, validation_keys))


def _not_up_to_date(preprocessed: Path, record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the images whose files have other names or sizes than when they were preprocessed.

    Where imagesUn is not on this machine, that is not known. A copy has other times.
    """
    raw = locate(preprocessed.name).raw
    if raw is None or not (raw / "imagesUn").is_dir():
        return []
    cases = unlabelled_cases(raw, read_dataset_json(raw), ())[0]
    return [key for key, files in cases.items() if _sizes(state_of(files, "")) != _sizes(record.get(key, {}))]


def _sizes(state: Mapping[str, Any]) -> list[list[Any]]:
    return [file[:2] for file in state.get("files", ())]


def refuse_withdrawn(preprocessed: Path, keys: Iterable[str], command: str) -> None:
    """Verifies that preprocessed images are still in imagesUn, where that folder is on this machine.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed.
        keys: images.
        command: that removes them.

    Raises:
        MutualError: some have been withdrawn.
    """
    raw = locate(preprocessed.name).raw
    if raw is None or not (raw / "imagesUn").is_dir():
        return
    gone = sorted(set(keys) - unlabelled_cases(raw, read_dataset_json(raw), ())[0].keys())
    if gone:
        raise MutualError(
            f"{len(gone)} preprocessed unlabelled image(s) are no longer in {raw / 'imagesUn'} ({shorten(gone, 3)}); "
            f"run {command}, which removes what was made of them, or put them back"
        )


def plans_fingerprint(plans: Mapping[str, Any], configuration: ConfigurationManager) -> str:
    """Returns a hash of all entries of the plans that the preprocessed voxels depend on."""
    entries = [plans[key] for key in _OF_PLANS if key in plans]
    entries += [configuration.configuration.get(key) for key in _OF_CONFIGURATION]
    entries += [[*plans[PLANS_KEY]]] if PLANS_KEY in plans else []  # in their order
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]


def state_of(files: CaseFiles, fingerprint: str, missing: Iterable[str] = ()) -> dict[str, Any]:
    """What an image was when it was preprocessed; linked files count as the files they point to.

    Args:
        files: of the image; what is written beside a tif about its spacing is one more.
        fingerprint: of the plans.
        missing: channels that it lacks, where preprocessing goes by them.
    """
    paths = list(files.images.values())
    beside = sidecar(paths[0], is_label=False)
    found = [(path.name, path.stat()) for path in (*paths, *([] if beside is None else [beside]))]
    lacks = {"missing": sorted(missing)} if missing else {}
    listed = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]
    return {"plans": fingerprint, "files": listed, **lacks}


def record_of(folder: Path) -> Path:
    """Path of the record of a folder of preprocessed unlabelled images."""
    return folder.with_name(f"{folder.name}.jsonl")


def read_record(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a line per image; a line cut short by a kill counts as not written."""
    found: dict[str, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
            found[entry.pop("case")] = entry
        except (ValueError, KeyError, AttributeError):
            continue
    return found


def write_record(path: Path, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Replaces the record; the old one stays until the new one is whole.

    Raises:
        OSError: the disk is full or not writable.
    """
    with written(path) as temporary:
        _write(temporary, states, "w")


def add_to_record(path: Path, key: str, state: Mapping[str, Any]) -> None:
    """Adds one image.

    Raises:
        OSError: the disk is full or not writable.
    """
    _write(path, {key: state}, "a")


def _write(path: Path, states: Mapping[str, Mapping[str, Any]], mode: str) -> None:
    with path.open(mode, encoding="utf-8") as stream:
        stream.writelines(json.dumps({"case": key, **state}) + "\n" for key, state in states.items())
        stream.flush()
        os.fsync(stream.fileno())
