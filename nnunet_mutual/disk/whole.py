"""Whether an image file was written to its end. Needs nothing of this package, since containers get a copy of it.

SimpleITK fills a truncated ``.nii.gz`` with zeros, compares no checksum and reads NaN as 0.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import tifffile

TIFF = (".tif", ".tiff")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, struct.error)
_CHUNK = 1 << 22  # bytes
_FAR = 1 << 60  # bytes; no file is as long
_NO_IMAGE = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, ValueError, OverflowError)
_GIPL_HEADER = 256
_GIPL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}  # of a voxel, by the type in the header


def read_to_end(path: Path) -> int:
    """Reads a file to its end; formats whose readers notice a missing end themselves are not read.

    Returns:
        NaN and infinite values of a NIfTI file; 0 for other formats.

    Raises:
        DAMAGED: the file is cut off, or its content does not fit its checksum.
    """
    if path.name.endswith((".nii", ".nii.gz")):
        return _verify_nifti(path)
    if path.suffix in TIFF:
        _verify_tiff(path)
    elif path.suffix in (".mha", ".nrrd", ".gipl"):
        with path.open("rb") as stream:
            {".mha": _verify_metaimage, ".nrrd": _verify_nrrd, ".gipl": _verify_gipl}[path.suffix](stream)
    return 0


def _verify_nifti(path: Path) -> int:
    start, left, dtype = 0, 0, np.dtype(np.uint8)
    with contextlib.suppress(*_NO_IMAGE):  # the reader says why
        image: Any = nibabel.load(path)
        if min(image.shape) > 0:
            start, dtype = int(image.dataobj.offset), np.dtype(image.dataobj.dtype)
            left = math.prod(image.shape) * dtype.itemsize
    broken = 0
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
        stream.seek(min(max(start, 0), _FAR))
        while left and (chunk := stream.read(min(_CHUNK, left))):
            left -= len(chunk)
            if dtype.kind == "f" and len(chunk) % dtype.itemsize == 0:
                broken += int(np.count_nonzero(~np.isfinite(np.frombuffer(chunk, dtype))))
        if left:
            raise EOFError(f"{left} bytes of its voxels are missing")
        while stream.read(_CHUNK):  # gzip compares the checksum at the very end
            pass
    return broken


def _verify_metaimage(stream: IO[bytes]) -> None:
    header: dict[bytes, bytes] = {}
    while b"ElementDataFile" not in header:
        key, equals, value = stream.readline(_CHUNK).partition(b"=")
        if not equals:
            return  # no MetaImage: the reader says why
        header[key.strip()] = value.strip()
    if header.get(b"CompressedData", b"").lower() == b"true" and header[b"ElementDataFile"] == b"LOCAL":
        _inflate(stream)


def _verify_nrrd(stream: IO[bytes]) -> None:
    header = []
    while line := stream.readline(_CHUNK).strip():
        header.append(line.lower().replace(b" ", b""))
    elsewhere = any(line.startswith((b"datafile:", b"byteskip:", b"lineskip:")) for line in header)
    if not elsewhere and {b"encoding:gzip", b"encoding:gz"} & set(header):
        _inflate(stream)


def _verify_gipl(stream: IO[bytes]) -> None:
    *shape, kind = struct.unpack(">5H", stream.read(10))
    missing = _GIPL_HEADER + math.prod(max(n, 1) for n in shape) * _GIPL_BYTES.get(kind, 0) - stream.seek(0, 2)
    if missing > 0:
        raise EOFError(f"{missing} bytes of its voxels are missing")


def _verify_tiff(path: Path) -> None:
    """Tifffile reads as many slices as it finds, and logs that the rest is gone."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign] # a whole class for one line
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        with tifffile.TiffFile(path) as file:
            size = path.stat().st_size
            for page in file.pages:
                ends = zip(page.dataoffsets, page.databytecounts, strict=False)
                if any(offset + count > size for offset, count in ends):
                    raise EOFError("pixels are missing")
    except (tifffile.TiffFileError, TypeError, ValueError, IndexError, KeyError):
        return  # no TIFF, or tags that cannot be: the reader says why
    finally:
        logger.removeHandler(handler)
    if said:
        raise EOFError(said[0])


def _inflate(stream: IO[bytes]) -> None:
    """Decompresses to the end, where the checksum is compared, and keeps nothing."""
    inflate = zlib.decompressobj(wbits=47)  # zlib or gzip, as the stream says itself
    while not inflate.eof:
        data = inflate.unconsumed_tail or stream.read(_CHUNK)
        if not data:
            inflate.flush()
            if not inflate.eof:
                raise EOFError("its compressed voxels end too early")
            return
        inflate.decompress(data, _CHUNK)
