"""Nobody is trained on and scored: no case, no patient, and no image, under whatever name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_mutual.datasets.case_headers import read_header
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.datasets.volumes import Finding, hash_of_voxels, read_volume
from nnunet_mutual.disk.cores import each_case
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.disk.whole import TIFF
from nnunet_mutual.errors import MutualError
from nnunet_mutual.trial.raw_data import Division, RawData


def require_apart(data: RawData, division: Division, fix: str) -> None:
    """Verifies that what is trained on and what is scored have nothing in common.

    Images count as the same where all voxels are, or differ by the same number, as HU and HU + 1024; constant ones, as
    for a channel that is missing, do not count.

    Args:
        data: the dataset that is trained on.
        division: of it, or of it and another one.
        fix: what to do, for the sentence.

    Raises:
        MutualError: they have; names the first case, patient or image.
    """
    test = division.source
    seen = {**division.training, **division.unlabelled}
    if test is data and (both := sorted({*seen} & {*division.scored})):
        raise MutualError(f"case {both[0]} would be trained on and scored; {fix}")
    own = {data.table.patients[key] for key in seen if key in data.table.patients}
    if shared := sorted(own & {test.table.patients[key] for key in division.scored if key in test.table.patients}):
        raise MutualError(f"{shared[0]} would be trained on and scored, so the scores would be too good; {fix}")
    if same := _same_image(_Side.of(data, seen.values()), _Side.of(test, division.scored.values())):
        raise MutualError(
            f"{same[1]} is the same image as {same[0]}, which is trained on, so the scores would be too good; {fix}"
        )


class _Side:
    """Images, and their sizes (Z, Y, X) where a header says them reliably."""

    def __init__(self, reader: BaseReaderWriter, sizes: Mapping[Path, tuple[int, ...] | None]):
        self.reader = reader
        self.sizes = sizes

    @classmethod
    def of(cls, data: RawData, cases: Iterable[CaseFiles]) -> _Side:
        paths = [path for files in cases for path in files.images.values()]
        reader = reader_for(data.content, paths)
        return cls(reader, {path: _size(path, reader) for path in paths})

    def by_voxels(self, other: _Side) -> dict[str, Path]:
        """Returns those that may be in the other side, too, by what tells equal images."""
        sizes = {*other.sizes.values()}
        read = [path for path, size in self.sizes.items() if None in {size, *sizes} or size in sizes]
        hashes = each_case(partial(_hash, self.reader), read, doing="comparing images")
        return {voxels: path for voxels, path in zip(hashes, read, strict=True) if voxels is not None}


def _same_image(one: _Side, other: _Side) -> tuple[Path, Path] | None:
    known, tested = one.by_voxels(other), other.by_voxels(one)
    return next(((known[voxels], path) for voxels, path in tested.items() if voxels in known), None)


def _size(path: Path, reader: BaseReaderWriter) -> tuple[int, ...] | None:
    if path.suffix in TIFF:  # tiles and planes say other sizes than their reader
        return None
    try:
        return read_header(path, reader)[0].shape[1:]
    except RuntimeError:  # SimpleITK refuses some headers that other readers take
        return None


def _hash(reader: BaseReaderWriter, path: Path) -> str | None:
    volume = read_volume(path, reader, Finding())
    if volume is None or volume.voxels.min() == volume.voxels.max():
        return None
    return hash_of_voxels([volume.voxels - volume.voxels.min()])
