"""Image files: read to their end, label maps written whole and wide enough, and which size of a voxel is real.

nnU-Net's readers do not notice files that are cut off (:mod:`nnunet_mutual.disk.whole`). Writers choose a type by the
largest value, if they get one that can hold it. And an image without a spacing gets one that looks real.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from numpy.typing import NDArray

from nnunet_mutual.disk.names import require_text
from nnunet_mutual.disk.whole import DAMAGED, TIFF, read_to_end
from nnunet_mutual.errors import MutualError

_ML = 1000  # cubic millimetres
_THICK = 998  # nnU-Net makes a 2d image 999 times as thick as its largest pixel


def read_images(reader: BaseReaderWriter, paths: Sequence[Path]) -> tuple[NDArray[Any], dict[str, Any]]:
    """Reads the images of one case with nnU-Net's reader, each file to its end.

    Args:
        reader: nnU-Net's.
        paths: in the order of the channels.

    Returns:
        (C, Z, Y, X) float32 and nnU-Net's properties.

    Raises:
        MutualError: a file is truncated or damaged, or the reader refuses it.
    """
    return _read(reader.read_images, [str(path) for path in paths], paths)


def read_label_map(reader: BaseReaderWriter, path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """Reads a label map with nnU-Net's reader, to its end.

    Returns:
        (Z, Y, X) int32 and nnU-Net's properties.

    Raises:
        MutualError: the file is truncated or damaged, or the reader refuses it.
    """
    voxels, properties = _read(reader.read_seg, str(path), [path])
    return np.rint(voxels[0]).astype(np.int32), properties


def write_label_map(reader: BaseReaderWriter, voxels: NDArray[Any], path: Path, properties: Mapping[str, Any]) -> None:
    """Writes a label map in the smallest integer type that holds all its values.

    Args:
        reader: nnU-Net's.
        voxels: (Z, Y, X) whole numbers from 0.
        path: the file; a tif gets its spacing beside it.
        properties: nnU-Net's, of the image or label map on whose grid the voxels are.

    Raises:
        MutualError: the format holds smaller values only.
        OSError, RuntimeError: the disk is full or not writable (SimpleITK reports it as RuntimeError).
    """
    highest = int(voxels.max(initial=0))
    most = 255 if isinstance(reader, SimpleITKIOWithReorient) or path.name.endswith(".bmp") else 65535
    if highest > most:
        raise MutualError(
            f"{path} cannot hold the value {highest}, nnU-Net's {type(reader).__name__} writes 0 to {most} there; use "
            'another "file_ending" or "overwrite_image_reader_writer" in dataset.json'
        )
    reader.write_seg(voxels.astype(np.uint8 if highest <= 255 else np.uint16), str(path), dict(properties))
    require_written(path)


def write_image(image: sitk.Image, path: Path) -> None:
    """Writes an image, compressed where its format can be.

    Raises:
        OSError, RuntimeError: the disk is full or not writable (SimpleITK reports it as RuntimeError).
    """
    sitk.WriteImage(image, str(path), useCompression=True)
    require_written(path)


def require_written(path: Path) -> None:
    """Verifies that a file was written to its end: SimpleITK says nothing where a disk was full.

    Raises:
        OSError: it was not.
    """
    try:
        read_to_end(path)
    except DAMAGED:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None


def require_reader(name: object, place: str) -> None:
    """Verifies that nnU-Net has a reader of a name.

    Raises:
        MutualError: it has none.
    """
    try:
        recursive_find_reader_writer_by_name(str(name))
    except RuntimeError:
        raise MutualError(
            f"{place} names {name!r}, which nnU-Net does not have; remove the entry, or correct it to a reader such as "
            "SimpleITKIO or NibabelIOWithReorient"
        ) from None


def require_readable(path: Path) -> None:
    """Verifies that there is permission to read a file, which readers report like a damaged one.

    Raises:
        MutualError: there is none.
    """
    try:
        path.open("rb").close()
    except PermissionError as error:
        raise MutualError(f"{path} cannot be read ({error.strerror}); get read permission for it") from None


def verify_whole(path: Path) -> int:
    """Reads a file to its end, once for each content; formats whose readers notice it themselves are not read.

    Returns:
        NaN and infinite values of a NIfTI file, which SimpleITK reads as 0; 0 for other formats.

    Raises:
        MutualError: the file is cut off, its content does not fit its checksum, its name is no text, or there is no
            permission to read it.
    """
    require_text(path)
    require_readable(path)
    state = path.stat()
    try:
        return _broken_values(path, state.st_size, state.st_mtime_ns)
    except DAMAGED as error:
        raise MutualError(
            f"{path} is cut off or damaged ({error}); copy it again from where it came from, or export it again"
        ) from None


def sidecar(path: Path, *, is_label: bool) -> Path | None:
    """Returns the file beside a tif that says its spacing, as nnU-Net's reader looks for it; None if there is none."""
    if path.suffix.lower() not in TIFF:
        return None
    found = path.with_name((path.stem if is_label else re.sub(r"_\d{4}$", "", path.stem)) + ".json")
    return found if found.is_file() else None


def is_flat(spacing: Sequence[float]) -> bool:
    """Whether nnU-Net's reader invented the thickness of a 2d image.

    Args:
        spacing: (Z, Y, X) in mm.
    """
    return float(spacing[0]) >= _THICK * max(map(float, spacing[1:]))


def flat_spacing(spacing: Sequence[float]) -> list[float]:
    """Returns the spacing (X, Y, Z) that nnU-Net's reader gives to a 2d image of the spacing (X, Y)."""
    return [*spacing, 999 * max(spacing)]


def voxel_ml(properties: Mapping[str, Any]) -> float | None:
    """Returns the volume of a voxel in millilitres; None where nnU-Net's reader invented the spacing.

    That is a 2d image, or a tif without a file that says its spacing.

    Args:
        properties: nnU-Net's, of an image or label map.
    """
    spacing = properties["spacing"]
    # Tiff3DIO gives a tuple of its own making, but a list where a file says the spacing.
    assumed = (
        isinstance(spacing, tuple) and spacing == (1, 1, 1) and not {"sitk_stuff", "nibabel_stuff"} & {*properties}
    )
    return None if assumed or is_flat(spacing) else math.prod(map(float, spacing)) / _ML


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the readers' own prints out of our reports (and out of --json)."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _read(read: Any, argument: Any, paths: Sequence[Path]) -> tuple[NDArray[Any], dict[str, Any]]:
    for path in paths:
        if not path.is_file():
            raise MutualError(f"{path} does not exist; put the file there")
        verify_whole(path)
    try:
        with quiet():
            voxels, properties = read(argument)
    except Exception as error:  # every format fails in its own way; the sentence names the file and the reader's reason
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MutualError(f"{paths[0]} cannot be read ({lines[-1]}); nnunet_mutual check examines every file") from None
    return voxels, properties


@lru_cache(maxsize=4096)
def _broken_values(path: Path, size: int, changed: int) -> int:
    """As :func:`verify_whole`; size and time of change tell contents apart, so that none is read twice."""
    return read_to_end(path)


def reader_for(dataset_json: Mapping[str, Any], examples: Sequence[Path]) -> BaseReaderWriter:
    """Returns the reader that nnU-Net will use.

    Args:
        dataset_json: names a reader or a file ending.
        examples: image files; nnU-Net tries the first one, we try more, so that a broken one does not hide the others.

    Raises:
        MutualError: nnU-Net has none for this file ending, or none of the name that dataset.json asks for.
    """
    named = dataset_json.get("overwrite_image_reader_writer", "None")
    if named != "None":  # of a name that it does not know, nnU-Net guesses another one
        require_reader(named, '"overwrite_image_reader_writer" of dataset.json')
    for example in [*map(str, examples[:5]), None]:
        with contextlib.suppress(RuntimeError), quiet():
            return determine_reader_writer_from_dataset_json(dict(dataset_json), example, verbose=False)()
    raise MutualError(
        f'nnU-Net has no reader for files ending in {dataset_json["file_ending"]!r}; correct "file_ending" or '
        "convert the files"
    )
