"""Grid of an image by its header, without its voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_mutual.disk.images import flat_spacing, require_readable

PLACED = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")  # formats of SimpleITK that say where an image lies


def read_header(path: Path, reader: BaseReaderWriter) -> tuple[NDArray[Any], dict[str, Any]]:
    """Returns what nnU-Net's reader would, as far as the header says it.

    Args:
        path: an image or a label map.
        reader: nnU-Net's; of one that turns images into one orientation, the grid is that of the turned image, without
            a place.

    Returns:
        Zeros of the shape (C, Z, Y, X), which take no memory, and nnU-Net's properties.

    Raises:
        RuntimeError: the header cannot be read.
        MutualError: there is no permission to read the file.
    """
    require_readable(path)
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    size, spacing = list(header.GetSize()), list(header.GetSpacing())
    properties: dict[str, Any] = {}
    if not path.name.endswith(PLACED):
        spacing = [1.0] * len(size)
    elif "Reorient" in type(reader).__name__:
        turned = np.abs(np.reshape(header.GetDirection(), (len(size),) * 2)).argmax(0).argsort()
        size, spacing = [size[n] for n in turned], [spacing[n] for n in turned]
    else:
        properties["sitk_stuff"] = {"origin": header.GetOrigin(), "direction": header.GetDirection()}
    if len(size) == 2:
        size, spacing = [*size, 1], flat_spacing(spacing)
    voxels = np.broadcast_to(np.zeros(1, np.uint8), (header.GetNumberOfComponents(), *reversed(size)))
    return voxels, {**properties, "spacing": spacing[::-1]}
