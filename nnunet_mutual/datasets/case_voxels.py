"""Reads one case with nnU-Net's own reader and says what is wrong with its voxels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.problems import ERROR, Problem
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.datasets.volumes import Finding, Volume, compare_grids, exact, read_volume
from nnunet_mutual.disk.whole import TIFF
from nnunet_mutual.errors import shorten


def inspect_case(
    files: CaseFiles,
    case: Case | None,
    table: AnnotationTable,
    reader: BaseReaderWriter,
    *,
    headers_only: bool = False,
) -> Finding:
    """Reads the images and the label map of a case.

    Args:
        files: where they lie.
        case: the entry of the table, None if it is missing there (then only the files are looked at).
        table: labels and channels.
        reader: from :func:`reader_for`.
        headers_only: read no voxel, so that what files hold is not known, only whether their grids fit together.
    """
    finding = Finding()
    images = _read_images(files, case, table, reader, finding, headers_only=headers_only)
    if not files.label.is_file():
        return finding  # already reported by the listing of files
    label = read_volume(files.label, reader, finding, is_label=True, headers_only=headers_only)
    if label is None:
        return finding
    if images:
        compare_grids(images[0], label, "the label map", finding)
    if headers_only:
        return finding
    counts = count_labels(label, table, finding)
    finding.present = {name for name, values in table.values.items() if any(counts.get(value) for value in values)}
    if case is not None:
        outside = outside_annotation(counts, table, case.drawn | case.pseudo)
        if outside:
            what = ", ".join(f"{number} voxel(s) of {name}" for name, number in outside.items())
            finding.error(
                label.path,
                f"{what}, not listed as annotated in case {case.key}; add {', '.join(outside)} to the labels of "
                "this case, or erase the voxels if the drawing is not complete",
            )
    return finding


def count_labels(label: Volume, table: AnnotationTable, finding: Finding) -> dict[int, int]:
    """Counts the voxels of each integer of a label map; what dataset.json does not define is an error.

    Args:
        label: the label map.
        table: integers of each label.
        finding: gets the errors.
    """
    counts = _count(label, finding)
    known = {0, table.ignore, *(value for values in table.values.values() for value in values)}
    unknown = sorted(set(counts) - known)
    if unknown:
        what = ", ".join(f"{value} ({counts[value]} voxels)" for value in unknown[:5])
        finding.error(
            label.path,
            f"holds values that dataset.json does not define: {what}; defined are {_values(table)}"
            + _hint_for_a_mask(unknown, table),
        )
    return counts


def outside_annotation(counts: Mapping[int, int], table: AnnotationTable, annotated: Iterable[str]) -> dict[str, int]:
    """Counts voxels of labels that are not annotated.

    A region that is not annotated may have voxels if an annotated region inside it has them: who draws the tumour core
    has thereby said that whole tumour is there.

    Args:
        counts: voxels of each integer in the label map.
        table: integers of each label.
        annotated: names of the annotated labels.
    """
    drawn = {name: set(table.values[name]) for name in annotated}
    found = {}
    for name, values in table.values.items():
        if name in drawn:
            continue
        implied = set().union(*(inner for inner in drawn.values() if inner <= set(values)))
        number = sum(counts.get(value, 0) for value in set(values) - implied)
        if number:
            found[name] = number
    return found


TOGETHER = "the channels are in one file, as in colour images, and groups need each in its own; save them so"


def in_one_file(files: CaseFiles, case: Case | None, table: AnnotationTable) -> bool:
    """Whether all channels of a case are in one file, as in colour images."""
    return len(files.images) == 1 < len(table.channels) - (0 if case is None else len(case.missing))


def first_in_one_file(cases: Mapping[str, CaseFiles], table: AnnotationTable) -> str | None:
    """Returns the first case of which all channels are in one file, None without any."""
    return next((key for key, files in cases.items() if in_one_file(files, table.cases.get(key), table)), None)


def missing_files(files: CaseFiles, case: Case | None, table: AnnotationTable) -> list[str]:
    """Returns the channels of a case that are declared missing and have no image, not even one of zeros."""
    if case is None or in_one_file(files, case, table):
        return []
    there = {table.channels[number] for number in files.images if number < len(table.channels)}
    return [name for name in table.channels if name in case.missing and name not in there]


def _hint_for_a_mask(unknown: Sequence[int], table: AnnotationTable) -> str:
    first = next((name for name, values in table.values.items() if 1 in values), None)
    return f"; if 255 is {first}, write 1 instead" if list(unknown) == [255] and first else ""


def _read_images(
    files: CaseFiles,
    case: Case | None,
    table: AnnotationTable,
    reader: BaseReaderWriter,
    finding: Finding,
    *,
    headers_only: bool,
) -> list[Volume]:
    channels = table.channels
    missing = case.missing if case is not None else frozenset[str]()
    volumes: dict[int, Volume] = {}
    for number, path in files.images.items():
        if number >= len(channels):
            finding.error(
                path,
                f"channel {number} is not in dataset.json, which has {len(channels)} ({', '.join(channels)}); remove "
                f"the file, add the channel, or, if this is a case of its own, call it {_as_case(path)}",
            )
        elif not path.is_file():
            finding.error(path, f"does not exist ({path}); correct the path in dataset.json")
        elif (volume := read_volume(path, reader, finding, headers_only=headers_only)) is not None:
            volumes[number] = volume
            if not headers_only and channels[number] not in missing:
                _check_intensities(volume, channels[number], finding)
            first = next(iter(volumes))
            what, of = (f"channel {n} ({channels[n]})" for n in (number, first))
            compare_grids(volumes[first], volume, what, finding, of=of, exactly=True)
    finding.images = volumes
    found = list(volumes.values())
    if len(files.images) == 1 and len(found) == 1 and len(found[0].voxels) == len(channels):
        return found  # all channels in one file, as in colour images
    for volume in found:
        if len(volume.voxels) != 1:
            finding.error(volume.path, _too_many_channels(volume, channels))
    if len(files.images) == len(found) == 1 < len(channels) and isinstance(reader, NaturalImage2DIO):
        if len(found[0].voxels) == 1:
            finding.error(found[0].path, _grey(channels))
        return found
    for number, name in enumerate(channels):
        if number not in files.images and name not in missing:
            text = (
                f'the image of channel {number} ({name}) is missing; add it, or list {name} under "missing" of this '
                "case and add an image of zeros"
            )
            finding.problems.append(Problem(ERROR, f"case {files.key}", text))
    return found


def _as_case(path: Path) -> str:
    stem, dot, ending = path.name.partition(".")
    return f"{stem}_0000{dot}{ending}"


def _too_many_channels(volume: Volume, channels: Sequence[str]) -> str:
    number, wanted = len(volume.voxels), f"dataset.json has {len(channels)} ({', '.join(channels)})"
    if number == 4 and len(channels) == 3:
        return f"is a colour image with transparency (RGBA, 4 channels), {wanted}; save it as RGB without transparency"
    if number in (3, 4) and len(channels) == 1 and volume.path.suffix in (".png", ".bmp", *TIFF):
        kind = "is a colour image (RGB, 3 channels)" if number == 3 else "is a colour image with transparency (RGBA)"
        first = "" if number == 3 else "save it as RGB and "
        return (
            f'{kind}, {wanted}; {first}write "channel_names": {{"0": "R", "1": "G", "2": "B"}} into dataset.json, or '
            "save it as a grey image"
        )
    return f"holds {number} channels, {wanted}; save each channel as its own file"


def _grey(channels: Sequence[str]) -> str:
    return (
        f"is a grey image (1 channel), dataset.json has {len(channels)} ({', '.join(channels)}); save it as RGB like "
        'the others, or, if all images are grey, write "channel_names": {"0": "grey"} into dataset.json'
    )


def _check_intensities(volume: Volume, channel: str, finding: Finding) -> None:
    if volume.voxels.min() == volume.voxels.max():
        finding.warning(
            volume.path,
            f'every voxel is {exact(volume.voxels.flat[0])}; if {channel} was not acquired, say "missing": '
            f'["{channel}"] in the table, else replace the image',
        )


def _count(label: Volume, finding: Finding) -> dict[int, int]:
    """Counts the voxels of each integer; reports the values that are none."""
    voxels = label.voxels[np.isfinite(label.voxels)]
    whole = np.rint(voxels)
    fractions = voxels[whole != voxels]
    if fractions.size:
        examples = shorten(map(exact, np.unique(fractions)), 3)
        finding.error(
            label.path,
            f"{fractions.size} voxel(s) are not whole numbers ({examples}), as after interpolation; resample the "
            "label map with nearest neighbour",
        )
        whole = whole[whole == voxels]
    if whole.size and whole.min() >= 0 and whole.max() < 2**16:
        counts = np.bincount(whole.astype(np.int64).ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.unique(whole, return_counts=True)
    return {int(value): int(number) for value, number in zip(values, numbers, strict=True)}


def _values(table: AnnotationTable) -> str:
    names = ["0 background", *(f"{'+'.join(map(str, values))} {name}" for name, values in table.values.items())]
    return ", ".join(names + ([f"{table.ignore} ignore"] if table.ignore is not None else []))
