"""A look at all cases of a dataset: what is kept of their files, read by all cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.case_voxels import inspect_case
from nnunet_mutual.datasets.problems import Problem
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.cores import each_case


@dataclass(frozen=True)
class Seen:
    """What is kept of the files of a case.

    Attributes:
        present: labels that have voxels; None where the label map was not, or cannot be, read.
        is_2d: whether the images are 2d; None without any.
        lowest: smallest voxel of the channel that nnU-Net takes for a CT; None without one.
        problems: what is wrong.
    """

    present: frozenset[str] | None
    is_2d: bool | None
    lowest: float | None
    problems: list[Problem]


def look(
    files: Mapping[str, CaseFiles],
    cases: Mapping[str, Case],
    table: AnnotationTable,
    reader: BaseReaderWriter,
    *,
    headers_only: bool = False,
) -> dict[str, Seen]:
    """Looks at every case.

    Args:
        files: of the cases.
        cases: entries of the table, as far as there are any.
        table: labels and channels.
        reader: from :func:`~nnunet_mutual.disk.images.reader_for`.
        headers_only: read no voxel.
    """
    ct = next((number for number, name in enumerate(table.channels) if name.casefold() == "ct"), None)
    see = partial(_see, table=table, reader=reader, ct=ct, headers_only=headers_only)
    jobs = [(files[key], cases.get(key)) for key in files]
    return dict(zip(files, each_case(see, jobs, doing="reading cases"), strict=True))


def _see(
    job: tuple[CaseFiles, Case | None],
    *,
    table: AnnotationTable,
    reader: BaseReaderWriter,
    ct: int | None,
    headers_only: bool,
) -> Seen:
    files, case = job
    finding = inspect_case(files, case, table, reader, headers_only=headers_only)
    image = None if ct is None or headers_only else finding.images.get(ct)
    lowest = float(image.voxels.min()) if image is not None and len(image.voxels) == 1 else None
    present = None if finding.present is None else frozenset(finding.present)
    return Seen(present, finding.is_2d if finding.images else None, lowest, finding.problems)
