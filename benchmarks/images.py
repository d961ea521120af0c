"""Images of benchmarks, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from numpy.typing import NDArray

ENDING = ".nii.gz"


def like(image: Any, voxels: NDArray[Any]) -> Any:
    """Returns voxels (Z, Y, X) as an image with the geometry of another one."""
    made = sitk.GetImageFromArray(voxels)
    made.CopyInformation(image)
    return made


def write_image(image: Any, path: Path) -> None:
    """Writes an image of SimpleITK."""
    temporary = path.with_name(f".{path.name}")
    sitk.WriteImage(image, str(temporary))
    os.replace(temporary, path)
