"""Writes the merged dataset into a temporary folder beside its place and renames that at the very end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_mutual.datasets.merge.agreement import Target
from nnunet_mutual.datasets.merge.identical import Contradiction, combine
from nnunet_mutual.datasets.merge.merged_cases import MergedCase
from nnunet_mutual.datasets.merge.readings import View
from nnunet_mutual.datasets.merge.scan import Scan
from nnunet_mutual.datasets.merge.sources import MergeSource
from nnunet_mutual.datasets.new_dataset import free_place, place_images
from nnunet_mutual.disk.cores import each_case
from nnunet_mutual.disk.files import write_csv, write_json
from nnunet_mutual.disk.folders import finish, not_written, temporary_folder
from nnunet_mutual.disk.images import read_label_map, write_label_map

CASES = "merged_cases.csv"
CONTRADICTIONS = "contradictions.csv"


def write_dataset(
    output: Path,
    dataset_json: Mapping[str, Any],
    cases: Sequence[MergedCase],
    views: Mapping[Scan, View],
    target: Target,
    preferred: Sequence[MergeSource],
    reader_of: Mapping[MergeSource, BaseReaderWriter],
    contradictions: Sequence[Contradiction],
    *,
    copy: bool,
) -> None:
    """Writes everything; until the last step there is no folder of the dataset's name.

    Args:
        output: folder of the merged dataset, which must not exist.
        dataset_json: its dataset.json.
        cases: its cases.
        views: what the integers of each labelled scan say.
        target: labels and ending.
        preferred: datasets that win contradictions.
        reader_of: reader of each dataset.
        contradictions: those that were decided, for the report.
        copy: copy images instead of linking them.

    Raises:
        MutualError: the disk is full or not writable, or another command has taken the place; nothing is left behind.
    """
    with temporary_folder(output, "merge", "merging") as folder:
        try:
            for name in ("imagesTr", "labelsTr", *(["imagesUn"] if not all(case.labelled for case in cases) else [])):
                (folder / name).mkdir()
            shared: dict[str, Any] = {"cases": cases, "views": views, "target": target, "preferred": preferred}
            write = partial(_write_case, folder=folder, **shared, reader_of=reader_of, copy=copy)
            for _ in each_case(write, range(len(cases)), doing="writing cases"):
                pass
            _write_case_list(folder / CASES, cases)
            if contradictions:
                write_contradictions(folder / CONTRADICTIONS, contradictions)
            write_json(folder / "dataset.json", dataset_json)
            free_place(output.name)  # another command may have taken its ID meanwhile
            finish(folder, output)
        except (OSError, RuntimeError) as error:  # SimpleITK reports a full disk as RuntimeError
            raise not_written(output, error) from None


def write_contradictions(path: Path, contradictions: Sequence[Contradiction]) -> None:
    """Writes a CSV with a row for each pair of labels that contradict each other in a case.

    Raises:
        OSError: the file cannot be written.
    """
    header = ["case", "images", "drawn_there", "voxels", "millilitres", "voxel_x", "voxel_y", "voxel_z", "written"]
    rows = [
        [
            found.group[0].new_key,
            " | ".join(map(str, found.group)),
            " | ".join(found.drawn),
            found.voxels,
            None if found.volume is None else f"{found.volume:.3f}",
            *found.place,
            found.kept or "",
        ]
        for found in contradictions
    ]
    write_csv(path, [header, *rows])


def _write_case_list(path: Path, cases: Sequence[MergedCase]) -> None:
    rows = [["case", "dataset", "case_there", "use"]]
    for case in cases:
        for scan in (*case.group, *case.dropped):
            use = "dropped, same image" if scan in case.dropped else ("labelled" if case.labelled else "unlabelled")
            rows.append([case.key, scan.source.name, scan.key, use])
    write_csv(path, rows)


def _write_case(
    number: int,
    *,
    folder: Path,
    cases: Sequence[MergedCase],
    views: Mapping[Scan, View],
    target: Target,
    preferred: Sequence[MergeSource],
    reader_of: Mapping[MergeSource, BaseReaderWriter],
    copy: bool,
) -> None:
    case = cases[number]
    first = case.group[0]
    images = folder / ("imagesTr" if case.labelled else "imagesUn")
    place_images(first.files, images, case.key, target.ending, copy=copy)
    if not case.labelled:
        return
    if len(case.group) > 1:
        voxels, properties, _ = combine(case.group, views, preferred, reader_of)
    else:
        old, properties = read_label_map(reader_of[first.source], first.files.label)
        new = np.zeros(old.max() + 1, np.int64)
        for value in np.flatnonzero(np.bincount(old.ravel())):
            new[value] = views[first].write(views[first].read(int(value)))
        voxels = new[old]
    write_label_map(reader_of[first.source], voxels, folder / "labelsTr" / (case.key + target.ending), properties)
