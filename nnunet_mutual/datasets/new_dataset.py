"""Makes a dataset folder that exists whole or not at all: a free place, a temporary folder, links to images."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import SimpleITK as sitk
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.images import sidecar, write_image
from nnunet_mutual.disk.locate import require_root
from nnunet_mutual.errors import MutualError


def free_place(output: str) -> Path:
    """Returns the folder of a new dataset in nnUNet_raw.

    Args:
        output: its name, 'Dataset111_Abdomen'.

    Raises:
        MutualError: not a dataset name, or its name or ID is in use.
    """
    root = require_root("nnUNet_raw")
    if not re.fullmatch(r"Dataset\d{3}_[\w\-]+", output):
        raise MutualError(
            f"the last word names the new dataset and is {output!r}; nnU-Net expects a name such as Dataset111_Abdomen"
        )
    used = [str(name) for name in find_candidate_datasets(int(output[7:10]))]
    if used:
        raise MutualError(
            f"the new dataset would be {output}, but the ID {output[7:10]} is already used by {' and '.join(used)} (in "
            "nnUNet_raw, nnUNet_preprocessed or nnUNet_results); choose a free one, or remove what is there"
        )
    return root / output


def place_images(files: CaseFiles, folder: Path, key: str, ending: str, *, copy: bool) -> None:
    """Links the images of a case into a folder, or converts them where their file ending differs.

    Args:
        files: of the case.
        folder: imagesTr or imagesUn of the new dataset.
        key: name of the case there.
        ending: file ending there.
        copy: copy instead of linking.

    Raises:
        OSError, RuntimeError: the disk is full or not writable (SimpleITK reports it as RuntimeError).
    """
    for number, path in files.images.items():
        place = folder / f"{key}_{number:04d}{ending}"
        if path.name.endswith(ending):
            link_or_copy(path, place, copy=copy)
        else:
            write_image(sitk.ReadImage(str(path)), place)
    spacing = sidecar(next(iter(files.images.values())), is_label=False)
    if ending.startswith(".tif") and spacing is not None:
        link_or_copy(spacing, folder / f"{key}.json", copy=copy)


def place_label_map(path: Path, place: Path, *, copy: bool) -> None:
    """Links a label map, and the file that says the spacing of a tif.

    Raises:
        OSError: the disk is full or not writable.
    """
    link_or_copy(path, place, copy=copy)
    spacing = sidecar(path, is_label=True)
    if spacing is not None:
        link_or_copy(spacing, place.with_suffix(".json"), copy=copy)


def link_or_copy(path: Path, place: Path, *, copy: bool) -> None:
    """Hard link (survives a move of the source dataset), else symbolic link, else copy."""
    path = path.resolve()
    if not copy:
        for link in (os.link, os.symlink):
            with contextlib.suppress(OSError, NotImplementedError):
                link(path, place)
                return
    shutil.copyfile(path, place)
