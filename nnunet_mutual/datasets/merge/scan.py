"""One pass over all images and label maps: problems, orientation, percentiles, and what tells equal images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_mutual.datasets.case_headers import PLACED
from nnunet_mutual.datasets.case_voxels import inspect_case
from nnunet_mutual.datasets.merge.agreement import NIFTI, REORIENT
from nnunet_mutual.datasets.merge.sources import MergeSource
from nnunet_mutual.datasets.problems import ERROR, Problem
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.datasets.volumes import Finding, exact, hash_of_voxels
from nnunet_mutual.disk.cores import each_case
from nnunet_mutual.disk.images import reader_for

PERCENTILES = (0.5, 50.0, 99.5)
_SAMPLES = 200_000  # voxels per channel for the percentiles


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Scan:
    """What one pass over the files of a case remembers.

    Attributes:
        labelled: lies in imagesTr; otherwise in imagesUn.
        present: labels with voxels, under their new names.
        equal: a hash that two cases share if all their voxels are equal.
        equal_but_offset: a hash that they share if the voxels differ by a constant only, such as HU and HU + 1024.
        minimum: smallest value of the first channel.
        spacing: of the first channel, in mm (Z, Y, X).
        voxel_ml: volume of a voxel in millilitres; None where the image says no size.
        orientation: axis codes such as 'RAS'; None where the format has none.
        percentiles: ``(channels, len(PERCENTILES))``; NaN for a channel that is missing.
    """

    source: MergeSource
    key: str
    labelled: bool
    present: frozenset[str]
    equal: str
    equal_but_offset: str
    minimum: float
    spacing: tuple[float, ...]
    voxel_ml: float | None
    orientation: str | None
    percentiles: NDArray[Any]

    @property
    def files(self) -> CaseFiles:
        """Where it lies."""
        return (self.source.training if self.labelled else self.source.unlabelled)[self.key]

    @property
    def new_key(self) -> str:
        """Name in the merged dataset."""
        return self.source.new_key(self.key)

    def __str__(self) -> str:
        return f"{self.source.short}:{self.key}"


def readers(sources: Sequence[MergeSource], ending: str, *, reorient: bool) -> dict[MergeSource, BaseReaderWriter]:
    """Returns the reader of each dataset.

    Args:
        sources: the datasets.
        ending: of the merged dataset.
        reorient: read all in one orientation, as the merged dataset will be read; so it is, too, where a dataset asks
            for that: equal images of different datasets are known by the order of their voxels.

    Raises:
        MutualError: nnU-Net has no reader for a file ending.
    """
    found = {}
    named = "overwrite_image_reader_writer"
    reorient = reorient or any(source.dataset_json.get(named) == REORIENT for source in sources)
    for source in sources:
        content = dict(source.dataset_json)
        own = content["file_ending"]
        if reorient and own in PLACED:
            content[named] = REORIENT if own in NIFTI else "SimpleITKIOWithReorient"
        elif own != ending:
            content[named] = "SimpleITKIO"  # the one that reads and writes all these formats
        examples = [path for files in source.training.values() for path in files.images.values()]
        found[source] = reader_for(content, examples)
    return found


def scan(
    sources: Sequence[MergeSource], reader_of: dict[MergeSource, BaseReaderWriter]
) -> tuple[list[Scan], dict[str, list[Problem]]]:
    """Reads every case once.

    Args:
        sources: the datasets.
        reader_of: from :func:`readers`.

    Returns:
        What was read (cases with errors are left out), and the problems by dataset name.
    """
    scans: list[Scan] = []
    problems = {source.name: list(source.problems) for source in sources}
    pending = [(s, True, files) for s in sources for files in s.training.values()]
    pending += [(s, False, files) for s in sources for files in s.unlabelled.values()]
    see = partial(_see, pending=pending, reader_of=reader_of)
    found = each_case(see, range(len(pending)), doing="reading cases")
    for (source, labelled, files), (own, remembered) in zip(pending, found, strict=True):
        problems[source.name] += own
        if remembered is not None:
            scans.append(Scan(source, files.key, labelled, **remembered))
    return scans, problems


def orientation(path: Path) -> str | None:
    """Returns the axis codes of a file, such as 'RAS': the first axis runs to the right, and so on."""
    if path.name.endswith(NIFTI):
        image: Any = nibabel.load(path)
        return "".join(code or "?" for code in nibabel.aff2axcodes(image.affine))
    if path.name.endswith(PLACED):
        header = sitk.ImageFileReader()
        header.SetFileName(str(path))
        header.ReadImageInformation()
        if header.GetDimension() == 3:
            turned = np.diag([-1, -1, 1]) @ np.reshape(header.GetDirection(), (3, 3))  # LPS to RAS
            return "".join(code or "?" for code in nibabel.aff2axcodes(np.pad(turned, (0, 1))))
    return None


def _see(
    number: int,
    *,
    pending: Sequence[tuple[MergeSource, bool, CaseFiles]],
    reader_of: Mapping[MergeSource, BaseReaderWriter],
) -> tuple[list[Problem], dict[str, Any] | None]:
    """What is wrong with a case and, without errors, what is remembered of it."""
    source, labelled, files = pending[number]
    finding = _inspect(source, files, labelled, reader_of[source])
    wrong = not finding.images or any(problem.severity == ERROR for problem in finding.problems)
    return finding.problems, None if wrong else _remember(source, files, finding)


def _inspect(source: MergeSource, files: CaseFiles, labelled: bool, reader: BaseReaderWriter) -> Finding:
    listed = not source.table.declared or files.key in source.table.cases
    case = source.table.case(files.key) if listed else None
    finding = inspect_case(files, case, source.table, reader)
    drawn = labelled and case is not None and case.drawn
    missing = case.missing if case is not None else frozenset[str]()
    wanted = [v for number, v in finding.images.items() if source.table.channels[number] not in missing]
    if wanted and all(volume.voxels.min() == volume.voxels.max() for volume in wanted):
        path = wanted[0].path
        finding.error(
            path, f"is empty: every voxel is {exact(wanted[0].voxels.flat[0])}; replace the image or remove the case"
        )
    if drawn and finding.present is not None and not finding.present and source.table.declared:
        finding.warning(files.label, "holds no label at all, although the table says that somebody looked")
    return finding


def _remember(source: MergeSource, files: CaseFiles, finding: Finding) -> dict[str, Any]:
    """The attributes of a scan that its voxels say."""
    first = next(iter(finding.images.values()))
    volumes = list(finding.images.values())
    missing = source.table.cases[files.key].missing if files.key in source.table.cases else frozenset[str]()
    rows = np.full((len(source.table.channels), len(PERCENTILES)), np.nan)
    for number, volume in finding.images.items():
        for offset, channel in enumerate(volume.voxels):
            if source.table.channels[number + offset] not in missing:
                flat = channel.reshape(-1)
                rows[number + offset] = np.percentile(flat[:: max(1, flat.size // _SAMPLES)], PERCENTILES)
    return {
        "present": frozenset(source.renamed[name] for name in finding.present or ()),
        "equal": hash_of_voxels(volume.voxels for volume in volumes),
        "equal_but_offset": hash_of_voxels(volume.voxels - volume.voxels.min() for volume in volumes),
        "minimum": float(first.voxels.min()),
        "spacing": first.spacing,
        "voxel_ml": first.voxel_ml,
        "orientation": orientation(first.path),
        "percentiles": rows,
    }
