"""One file as nnU-Net's own reader gives it, and whether two of them lie on one grid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_mutual.datasets.case_headers import read_header
from nnunet_mutual.datasets.problems import ERROR, WARNING, Problem
from nnunet_mutual.disk.images import is_flat, quiet, verify_whole, voxel_ml
from nnunet_mutual.disk.whole import TIFF
from nnunet_mutual.errors import MutualError


@dataclass(frozen=True)
class Volume:
    """One file: voxels ``(C, Z, Y, X)``, spacing in mm (Z, Y, X), position and axes where the format has them.

    ``voxel_ml`` is None where nnU-Net's reader invented the spacing.
    """

    path: Path
    voxels: NDArray[Any]
    spacing: tuple[float, ...]
    origin: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    voxel_ml: float | None = None


@dataclass
class Finding:
    """What the files of one case hold.

    Attributes:
        present: labels that have voxels; None if the label map cannot be read.
        problems: what is wrong.
        images: what could be read, by channel number; one volume of several channels where one file holds them all.
    """

    present: set[str] | None = None
    problems: list[Problem] = field(default_factory=list)
    images: dict[int, Volume] = field(default_factory=dict, repr=False)

    @property
    def is_2d(self) -> bool:
        """Whether the images are 2d; such data have no 3d configuration."""
        return any(is_flat(volume.spacing) for volume in self.images.values())

    def error(self, path: Path, text: str) -> None:
        """Adds an error about a file."""
        self.problems.append(Problem(ERROR, f"{path.parent.name}/{path.name}", text))

    def warning(self, path: Path, text: str) -> None:
        """Adds a warning about a file."""
        self.problems.append(Problem(WARNING, f"{path.parent.name}/{path.name}", text))


def read_volume(
    path: Path, reader: BaseReaderWriter, finding: Finding, *, is_label: bool = False, headers_only: bool = False
) -> Volume | None:
    """Reads an image or a label map to its end; returns None where it cannot, and adds the reason to the findings."""
    try:
        if headers_only:
            (voxels, properties), broken = read_header(path, reader), 0
        else:
            hidden = verify_whole(path)  # NaN that SimpleITK silently reads as 0, in CT the value of water
            with quiet():
                voxels, properties = reader.read_seg(str(path)) if is_label else reader.read_images((str(path),))
                broken = int(np.count_nonzero(~np.isfinite(voxels))) or hidden
    except MutualError as error:
        finding.error(path, str(error).removeprefix(f"{path} "))
        return None
    except Exception as error:  # every format fails in its own way; the sentence names the file and the reader's reason
        lines = str(error).replace(f'"{path}"', "it").strip().splitlines()
        finding.error(path, f"cannot be read ({lines[-1] if lines else type(error).__name__}); export it again")
        return None
    if voxels.size == 0:
        finding.error(path, f"has the shape {voxels.shape}; expected voxels, export it again")
        return None
    if len(properties["spacing"]) != 3:  # SimpleITK's vectors
        finding.error(path, f"holds several values for each voxel (shape {voxels.shape}); save each as its own file")
        return None
    if is_label and len(voxels) != 1 and not headers_only:
        finding.error(path, _coloured_label_map(voxels))
        return None
    if broken:
        what = "draw them again or set them to 0" if is_label else "replace them, for example by the value of air"
        finding.error(path, f"{broken} voxel(s) are NaN or infinite; {what}")
    spacing = tuple(float(s) for s in properties["spacing"])
    return Volume(path, voxels, spacing, *_position(properties), voxel_ml(properties))


def _coloured_label_map(voxels: NDArray[Any]) -> str:
    equal = (voxels[:3] == voxels[0]).all()
    fix = (
        "save one of them, which are equal," if equal else "turn its colours into the numbers of dataset.json and save"
    )
    return (
        f"has {len(voxels)} channels, a label map one whole number for each voxel; {fix}"
        f"{'' if equal else ' them'} as an image of one channel (grey)"
    )


def _position(properties: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if "sitk_stuff" in properties:
        return tuple(properties["sitk_stuff"]["origin"]), tuple(properties["sitk_stuff"]["direction"])
    if "nibabel_stuff" in properties:
        affine = np.asarray(
            properties["nibabel_stuff"].get("reoriented_affine", properties["nibabel_stuff"]["original_affine"])
        )
        axes = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
        return tuple(affine[:3, 3]), tuple(axes.ravel())
    return None, None


def compare_grids(
    image: Volume, other: Volume, what: str, finding: Finding, *, of: str = "", exactly: bool = False
) -> None:
    """Finds differences of grids; nnU-Net goes by indices, so a shifted grid puts labels on the wrong tissue silently.

    Args:
        image: whose grid is right.
        other: what must lie on it.
        what: other in words, such as "the label map".
        finding: gets the errors.
        of: the image in words; its file name if not given.
        exactly: nnU-Net refuses the smallest difference of spacings, as between channels; else it trains with it.
    """
    of = of or image.path.name
    if image.voxels.shape[1:] != other.voxels.shape[1:]:
        finding.error(
            other.path,
            f"{what} has {_size(other)} voxels, {of} has {_size(image)}; resample it to the grid of the image",
        )
        return
    _compare_spacings(image, other, f"{what} has voxels of", of, finding, exactly)
    if image.origin is None or other.origin is None or image.axes is None or other.axes is None:
        return
    if len(image.axes) != len(other.axes):
        return  # a 2d image and a 3d label map of one slice have no common frame
    if not np.allclose(image.axes, other.axes, atol=1e-2):
        finding.error(
            other.path,
            f"the axes of {what} point in other directions than those of {of}; left and right may be "
            "swapped, resample it to the image",
        )
        return
    shift = np.subtract(other.origin, image.origin)
    if np.abs(shift).max() > 0.5 * min(image.spacing):
        finding.error(
            other.path,
            f"{what} is shifted by {_mm(shift)} mm (x, y, z) against {of}; resample it to the grid of "
            "the image, or correct the header",
        )


def _compare_spacings(image: Volume, other: Volume, what: str, of: str, finding: Finding, exactly: bool) -> None:
    """With NumPy's default tolerance, as nnU-Net's readers and its verify_dataset_integrity do."""
    if np.allclose(image.spacing, other.spacing):
        return
    own, wanted = voxel_sizes(other.spacing, image.spacing)
    fix = f"write it into {other.path.stem}.json" if other.path.suffix in TIFF else "correct the header"
    text = f"{what} {own} mm, {of} of {wanted} mm; {fix} or resample"
    if exactly or not np.allclose(image.spacing, other.spacing, rtol=1e-3):
        finding.error(other.path, text)
    else:
        finding.warning(other.path, f"{text} (nnU-Net trains with it, its --verify_dataset_integrity refuses it)")


def voxel_sizes(one: Sequence[float], other: Sequence[float]) -> tuple[str, str]:
    """Returns two voxel sizes (Z, Y, X) as x, y, z, with as many digits as tell them apart."""
    digits = next((n for n in range(4, 17) if _mm(one[::-1], n) != _mm(other[::-1], n)), 17)
    return _mm(one[::-1], digits), _mm(other[::-1], digits)


def _size(volume: Volume) -> str:
    return " x ".join(str(n) for n in reversed(volume.voxels.shape[1:]))


def _mm(numbers: Iterable[float], digits: int = 4) -> str:
    return " x ".join(f"{number:.{digits}g}" for number in numbers)


def exact(number: float) -> str:
    """As few digits as tell it from its neighbours: 0.9999999 is not 1."""
    return str(np.float32(number)).removesuffix(".0")


def hash_of_voxels(arrays: Iterable[NDArray[Any]]) -> str:
    """Returns what two images share if all their voxels are equal, however they were saved."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()
