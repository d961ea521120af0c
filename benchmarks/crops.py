"""Crops around the structures of interest, as the public left-atrium set is distributed.

The reference labels say where the centre is, of every case alike, so that a crop favours no arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from images import ENDING, write_image
from numpy.typing import NDArray
from settings import Setting, read_json, write_json


def write_crops(setting: Setting) -> None:
    """Crops every case of the protocol that is not there yet, images and labels."""
    source, target = setting.public_folder(setting["folder"]), setting.data_folder(setting["folder"])
    content = read_json(source / "dataset.json")
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for case in (case for cases in setting["cases"].values() for case in cases):
        done = target / "labelsTr" / f"{case}{ENDING}"  # written last
        if done.is_file():
            continue
        labels = sitk.ReadImage(str(source / "labelsTr" / done.name))
        box = box_around(sitk.GetArrayFromImage(labels), setting["crop"]["size"])
        voxels = tuple(reversed(box))  # of SimpleITK: X, Y, Z
        for channel in content["channel_names"]:
            name = f"{case}_{int(channel):04d}{ENDING}"
            write_image(sitk.ReadImage(str(source / "imagesTr" / name))[voxels], target / "imagesTr" / name)
        write_image(labels[voxels], done)
    write_json(target / "dataset.json", content)


def box_around(labels: NDArray[Any], size: Sequence[int | None]) -> tuple[slice, ...]:
    """Returns the box of a size around the middle of the foreground, inside of the image.

    Args:
        labels: (Z, Y, X), 0 is background.
        size: in voxels; null leaves an axis whole, and one that is shorter than its size stays as it is.
    """
    box = []
    for axis, (length, wanted) in enumerate(zip(labels.shape, size, strict=True)):
        found = np.flatnonzero(labels.any(axis=tuple(a for a in range(labels.ndim) if a != axis)))
        kept = length if wanted is None else min(wanted, length)
        start = (int(found[0]) + int(found[-1]) + 1 - kept) // 2 if len(found) else (length - kept) // 2
        start = min(max(start, 0), length - kept)
        box.append(slice(start, start + kept))
    return tuple(box)
