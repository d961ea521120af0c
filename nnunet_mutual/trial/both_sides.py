"""Nobody is trained on and scored: neither a patient nor an image, however the image was saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_mutual.datasets.case_headers import read_header
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.datasets.volumes import Finding, hash_of_voxels, read_volume
from nnunet_mutual.disk.cores import each_case
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.errors import MutualError
from nnunet_mutual.trial.raw_data import RawData


def require_apart(data: RawData, test: RawData) -> None:
    """Verifies that two datasets share no patient and no image.

    Args:
        data: that is trained on, images without labels included.
        test: that is scored.

    Raises:
        MutualError: they do; names the first one.
    """
    own, other = ({case.patient for case in found.table.cases.values()} - {None} for found in (data, test))
    if shared := sorted(own & other, key=str):
        raise MutualError(
            f"patient {shared[0]} is in {data.name} and in {test.name}, so the scores would be too good; remove the "
            "patient from one of them"
        )
    if same := _same_image(data, test):
        raise MutualError(
            f"{same[1]} is the same image as {same[0]}, which is trained on, so the scores would be too good; remove "
            "it from one of the datasets"
        )


def _same_image(data: RawData, test: RawData) -> tuple[Path, Path] | None:
    """Returns two files with equal voxels; read are only those of a size that both datasets have."""
    sides = []
    for found, files in ((data, [*data.training.values(), *data.unlabelled.values()]), (test, test.training.values())):
        paths = _paths(files)
        reader = reader_for(found.content, paths)
        sides.append((reader, {path: read_header(path, reader)[0].shape for path in paths}))
    common = {*sides[0][1].values()} & {*sides[1][1].values()}
    known, tested = (
        _by_voxels(reader, [path for path, size in sizes.items() if size in common]) for reader, sizes in sides
    )
    return next(((known[voxels], path) for voxels, path in tested.items() if voxels in known), None)


def _paths(cases: Iterable[CaseFiles]) -> list[Path]:
    return [path for files in cases for path in files.images.values()]


def _by_voxels(reader: BaseReaderWriter, paths: Sequence[Path]) -> dict[str, Path]:
    hashes = each_case(partial(_hash, reader), paths, doing="comparing images")
    return {voxels: path for voxels, path in zip(hashes, paths, strict=True) if voxels is not None}


def _hash(reader: BaseReaderWriter, path: Path) -> str | None:
    """Tells equal images; None of one that cannot be read, or that shows nothing, as for a channel that is missing."""
    volume = read_volume(path, reader, Finding())
    if volume is None or volume.voxels.min() == volume.voxels.max():
        return None
    return hash_of_voxels([volume.voxels])
