"""Writes the merged dataset into a temporary folder beside its place and renames that at the very end."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm

from nnunet_mutual.datasets.files import write_json
from nnunet_mutual.datasets.merging.agreement import Target
from nnunet_mutual.datasets.merging.identical import Contradiction, combine
from nnunet_mutual.datasets.merging.scan import Scan
from nnunet_mutual.datasets.merging.sources import MergeSource
from nnunet_mutual.datasets.merging.table import MergedCase
from nnunet_mutual.datasets.merging.views import View
from nnunet_mutual.errors import MutualError

_OWNER = "merge_in_progress"
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
        MutualError: the disk is full or not writable; nothing is left behind.
    """
    with _temporary_folder(output) as folder:
        try:
            for name in ("imagesTr", "labelsTr", *(["imagesUn"] if not all(case.labelled for case in cases) else [])):
                (folder / name).mkdir()
            for case in tqdm(cases, desc="writing cases", unit="case", file=sys.stderr, leave=False):
                _write_images(case, folder, target.ending, copy=copy)
                if case.labelled:
                    _write_label(case, folder, views, target, preferred, reader_of)
            _write_case_list(folder / CASES, cases)
            if contradictions:
                write_contradictions(folder / CONTRADICTIONS, contradictions)
            write_json(folder / "dataset.json", dataset_json)
            (folder / _OWNER).unlink()
            os.replace(folder, output)
        except (OSError, RuntimeError) as error:  # SimpleITK reports a full disk as RuntimeError
            lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
            raise MutualError(
                f"{output} could not be written ({lines[-1] if lines else type(error).__name__}) and nothing was kept; "
                f"free space or get write permission for {output.parent}, then repeat"
            ) from None


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
            f"{found.volume:.3f}",
            *found.place,
            found.kept or "",
        ]
        for found in contradictions
    ]
    _write_csv(path, [header, *rows])


def _write_case_list(path: Path, cases: Sequence[MergedCase]) -> None:
    rows = [["case", "dataset", "case_there", "use"]]
    for case in cases:
        for scan in (*case.group, *case.dropped):
            use = "dropped, same image" if scan in case.dropped else ("labelled" if case.labelled else "unlabelled")
            rows.append([case.key, scan.source.name, scan.key, use])
    _write_csv(path, rows)


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary_folder(output: Path) -> Iterator[Path]:
    """Makes the temporary folder, removes what a killed merge left in its place, and leaves none behind."""
    folder = output.with_name(f".{output.name}.merging")
    if folder.exists():
        _refuse_running(folder)
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        (folder / _OWNER).write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
    except OSError as error:
        raise MutualError(
            f"{folder} could not be made ({error.strerror or error}); get write permission for {output.parent}"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # after the rename it is no longer there


def _refuse_running(folder: Path) -> None:
    try:
        host, text = (folder / _OWNER).read_text(encoding="utf-8").split()
        number = int(text)
    except (OSError, ValueError):
        return  # not even begun, or finished but for the rename
    if host == socket.gethostname() and os.name == "posix":
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass  # alive, of another user
        if number == os.getpid():
            return
    raise MutualError(
        f"another merge (process {number} on {host}) is writing {folder}; wait for it, or remove that folder if it no "
        "longer runs"
    )


def _write_images(case: MergedCase, folder: Path, ending: str, *, copy: bool) -> None:
    first = case.group[0]
    images = folder / ("imagesTr" if case.labelled else "imagesUn")
    for number, path in first.files.images.items():
        place = images / f"{case.key}_{number:04d}{ending}"
        if path.name.endswith(ending):
            _link(path, place, copy=copy)
        else:
            sitk.WriteImage(sitk.ReadImage(str(path)), str(place), useCompression=True)
    sidecar = next(iter(first.files.images.values())).with_name(f"{first.key}.json")
    if ending.startswith(".tif") and sidecar.is_file():  # nnU-Net reads the spacing of tif files from there
        _link(sidecar, images / f"{case.key}.json", copy=copy)


def _link(path: Path, place: Path, *, copy: bool) -> None:
    """Hard link (survives a move of the source dataset), else symbolic link, else copy."""
    path = path.resolve()
    if not copy:
        for link in (os.link, os.symlink):
            with contextlib.suppress(OSError, NotImplementedError):
                link(path, place)
                return
    shutil.copyfile(path, place)


def _write_label(
    case: MergedCase,
    folder: Path,
    views: Mapping[Scan, View],
    target: Target,
    preferred: Sequence[MergeSource],
    reader_of: Mapping[MergeSource, BaseReaderWriter],
) -> None:
    place = folder / "labelsTr" / (case.key + target.ending)
    first = case.group[0]
    reader = reader_of[first.source]
    if len(case.group) > 1:
        voxels, properties, _ = combine(case.group, views, preferred, reader_of)
    else:
        drawn, properties = reader.read_seg(str(first.files.label))
        old = np.rint(drawn[0]).astype(np.int64)
        new = np.zeros(old.max() + 1, np.int64)
        for value in np.flatnonzero(np.bincount(old.ravel())):
            new[value] = views[first].write(views[first].read(int(value)))
        voxels = new[old]
    reader.write_seg(voxels, str(place), properties)
