"""What a simulated dataset consists of, and writing it: images, restricted label maps, table, and the truth aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.entries import drawn_entry, ordered, outlined_entry
from nnunet_mutual.annotation.possible import drawn_around
from nnunet_mutual.annotation.table import VERSION, AnnotationTable
from nnunet_mutual.datasets.new_dataset import free_place, place_images, place_label_map
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.datasets.simulate.hiding import Hiding
from nnunet_mutual.disk.cores import each_case
from nnunet_mutual.disk.files import write_csv, write_json
from nnunet_mutual.disk.folders import finish, not_written, temporary_folder
from nnunet_mutual.disk.images import read_label_map, write_image, write_label_map
from nnunet_mutual.settings import BLOCK

TRUTH = "truth"  # nnU-Net and this package read imagesTr, imagesUn, labelsTr and dataset.json only
CASES = "simulated_cases.csv"
FOLDERS = {"labelled": "imagesTr", "unlabelled": "imagesUn", "test": "imagesTs"}


@dataclass(frozen=True)
class Original:
    """The dataset that is simulated from, read and verified."""

    name: str
    content: Mapping[str, Any]
    table: AnnotationTable
    training: Mapping[str, CaseFiles]
    unlabelled: Mapping[str, CaseFiles]
    reader: BaseReaderWriter
    present: dict[str, frozenset[str]] = field(default_factory=dict)
    flat: set[str] = field(default_factory=set)  # cases of a single slice

    def listed(self, key: str) -> Case | None:
        """The entry of a case; unlabelled ones need not have one."""
        return self.table.case(key) if key in self.training else self.table.cases.get(key)


@dataclass(frozen=True)
class NewCase:
    """One case of the new dataset.

    Attributes:
        files: in the original dataset.
        use: 'labelled', 'unlabelled' or 'test'.
        site: one of the sites of ``--keep``, or ''.
        source: in the new table; None for an unlabelled case that the old table does not list.
        kept: what is drawn in its label map.
        missing: channels that it lacks.
        in_part: labels of which a part is hidden.
    """

    files: CaseFiles
    use: str
    site: str
    source: str | None
    kept: frozenset[str]
    missing: frozenset[str]
    in_part: frozenset[str] = frozenset()


def block_of(original: Original, cases: Sequence[NewCase], keep: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    """Returns the annotation table of the simulated dataset.

    Args:
        original: the dataset that it is made from.
        cases: its cases.
        keep: labels that each site draws; empty if there are no sites.
    """
    table = original.table
    old = original.content.get(BLOCK, {})
    block: dict[str, Any] = {"version": VERSION, "sources": {}, "cases": {}}
    for case in cases:
        listed = original.listed(case.files.key)
        if case.use == "test" or case.source is None or listed is None:
            continue
        source = table.sources[listed.source]
        asked = keep.get(case.site, frozenset(table.labels))
        says: dict[str, Any] = {"annotated": ordered(source.annotated & asked, table.labels)}
        if source.incomplete & asked:
            says["incomplete"] = ordered(source.incomplete & asked, table.labels)
        drawn = asked & (source.annotated | source.incomplete)
        around = table.contained(listed)  # at any depth: what lies between may not be drawn
        inside = {outer: ordered(around[outer], table.labels) for outer in source.contains if outer in drawn}
        block["sources"].setdefault(case.source, {**says, **({"contains": inside} if inside else {})})
        entry: dict[str, Any] = {"source": case.source}
        if case.use == "labelled":
            annotated, incomplete = listed.annotated - case.in_part, listed.incomplete | case.in_part
            annotated, incomplete, pseudo = (case.kept & names for names in (annotated, incomplete, listed.pseudo))
            entry |= drawn_entry(block["sources"][case.source], annotated, incomplete, pseudo, table.labels)
            entry |= outlined_entry(one for one in listed.outlined if one.label in annotated)
        if listed.patient is not None:
            entry["patient"] = listed.patient
        if case.missing:
            entry["missing"] = [channel for channel in table.channels if channel in case.missing]
        block["cases"][case.files.key] = entry
    site_of = {case.source: case.site for case in cases}
    order = ["", *keep]
    block["sources"] = dict(sorted(block["sources"].items(), key=lambda item: order.index(site_of[item[0]])))
    block |= {key: old[key] for key in ("labels", "may_overlap", "modality_groups") if key in old}
    return block


def restricted(
    voxels: NDArray[Any],
    table: AnnotationTable,
    kept: frozenset[str],
    contains: Mapping[str, frozenset[str]] | None = None,
) -> NDArray[Any]:
    """Returns a label map as somebody draws it who draws only some labels: the others become what contains them, or 0.

    Of the integers that agree about every kept region, the one in the fewest regions is written.

    Args:
        voxels: whole numbers.
        table: integers of each label.
        kept: names of the labels that are drawn.
        contains: of plain labels, all that the outline of each contains where it is not drawn itself.
    """
    regions = {name: frozenset(values) for name, values in table.values.items()}
    integers = sorted(frozenset({0}).union(*regions.values()))
    number = Counter(i for region in regions.values() for i in region)
    inside = {i: frozenset(name for name in kept if i in regions[name]) for i in integers}
    written: dict[frozenset[str], int] = {}  # by the kept regions in which an integer is
    for i in sorted(integers, key=lambda i: (number[i], i)):
        written.setdefault(inside[i], i)
    new = np.arange(max(int(voxels.max()), integers[-1]) + 1)  # the ignore label stays
    for i in integers:
        new[i] = written[inside[i]]
    for name in (name for name in table.labels if name not in kept):
        outer = drawn_around(name, kept, contains or {})
        if outer is not None:
            new[list(table.values[name])] = table.values[outer][0]
    return new[voxels]


def write_simulated(
    place: Path,
    original: Original,
    cases: Sequence[NewCase],
    dataset_json: Mapping[str, Any],
    hiding: Hiding,
    *,
    copy: bool,
) -> None:
    """Writes everything; until the last step there is no folder of the dataset's name.

    Args:
        place: folder of the new dataset, which must not exist.
        original: the dataset that it is made from.
        cases: its cases.
        dataset_json: its dataset.json.
        hiding: of labels that are drawn in part.
        copy: copy images instead of linking them.

    Raises:
        MutualError: the disk is full or not writable; nothing is left behind.
    """
    with temporary_folder(place, "simulation", "simulating") as folder:
        try:
            for name in (*{"imagesTr", "labelsTr"} | {FOLDERS[case.use] for case in cases}, f"{TRUTH}/labels"):
                (folder / name).mkdir(parents=True)
            write = partial(_write_case, folder=folder, original=original, hiding=hiding, copy=copy)
            for _ in each_case(write, cases, doing="writing cases"):
                pass
            header = ["case", "use", "source", "labels_kept", "channels_missing", "labels_in_part"]
            write_csv(folder / CASES, [header, *map(_row, cases)])
            truth = {key: value for key, value in original.content.items() if key != "dataset"}
            write_json(folder / TRUTH / "dataset.json", truth)
            write_json(folder / "dataset.json", dataset_json)
            free_place(place.name)  # another command may have taken its ID meanwhile
            finish(folder, place)
        except (OSError, RuntimeError) as error:  # SimpleITK reports a full disk as RuntimeError
            raise not_written(place, error) from None


def _row(case: NewCase) -> list[str]:
    sets = [" ".join(sorted(names)) for names in (case.kept, case.missing, case.in_part)]
    return [case.files.key, case.use, case.source or "", *sets]


def _write_case(case: NewCase, folder: Path, original: Original, hiding: Hiding, *, copy: bool) -> None:
    files, table = case.files, original.table
    ending = original.content["file_ending"]
    listed = original.listed(files.key)
    images = folder / FOLDERS[case.use]
    zeros = case.missing - (listed.missing if listed is not None else frozenset())
    there = {number: path for number, path in files.images.items() if table.channels[number] not in zeros}
    place_images(CaseFiles(files.key, there, files.label), images, files.key, ending, copy=copy)
    for number in set(files.images) - set(there):
        _write_zeros(files.images[number], images / f"{files.key}_{number:04d}{ending}")
    if files.key not in original.training:
        return
    whole = folder / TRUTH / "labels" / (files.key + ending)
    if files.label.name.endswith(ending):
        place_label_map(files.label, whole, copy=copy)
    else:
        voxels, properties = read_label_map(original.reader, files.label)
        write_label_map(original.reader, voxels, whole, properties)
    if case.use == "labelled" and listed is not None:
        label = folder / "labelsTr" / whole.name
        if case.kept == listed.drawn | listed.pseudo and not case.in_part:
            place_label_map(whole, label, copy=True)  # redrawn in place, a link would change the truth
        else:
            voxels, properties = read_label_map(original.reader, files.label)
            draw = partial(restricted, table=table, contains=table.contained(listed))
            voxels = _with_hidden(draw(voxels, kept=case.kept), properties, case, table, hiding, draw)
            write_label_map(original.reader, voxels, label, properties)


def _with_hidden(
    voxels: NDArray[Any],
    properties: Mapping[str, Any],
    case: NewCase,
    table: AnnotationTable,
    hiding: Hiding,
    draw: Callable[..., NDArray[Any]],
) -> NDArray[Any]:
    """Takes the hidden parts of labels out of a label map."""
    for label in ordered(case.in_part, table.labels):
        mask = hiding.hidden(np.isin(voxels, table.values[label]), properties["spacing"], case.files.key, label)
        voxels = np.where(mask, draw(voxels, kept=case.kept - {label}), voxels)
    return voxels


def _write_zeros(path: Path, place: Path) -> None:
    """Writes an image of zeros on the same grid: nnU-Net needs a file for every channel."""
    image = sitk.ReadImage(str(path))
    zeros = sitk.Image(image.GetSize(), image.GetPixelID(), image.GetNumberOfComponentsPerPixel())
    zeros.CopyInformation(image)
    write_image(zeros, place)
