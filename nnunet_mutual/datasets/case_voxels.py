"""Reads one case with nnU-Net's own reader and says what is wrong with its voxels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from numpy.typing import NDArray

from nnunet_mutual.annotation.table import AnnotationTable, Case
from nnunet_mutual.datasets.case_headers import read_header
from nnunet_mutual.datasets.problems import ERROR, WARNING, Problem
from nnunet_mutual.datasets.raw import CaseFiles
from nnunet_mutual.disk.images import is_flat, quiet, require_reader, verify_whole, voxel_ml
from nnunet_mutual.disk.whole import TIFF
from nnunet_mutual.errors import MutualError, shorten


@dataclass(frozen=True)
class Volume:
    """One file: voxels ``(C, Z, Y, X)``, spacing in mm (Z, Y, X), position and axes where the format has them.

    ``voxel_ml`` is None where nnU-Net's reader invented the spacing.
    """

    path: Path
    voxels: NDArray[Any]
    spacing: tuple[float, ...]
    origin: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    voxel_ml: float | None = None


@dataclass
class Finding:
    """What the files of one case hold.

    Attributes:
        present: labels that have voxels; None if the label map cannot be read.
        problems: what is wrong.
        images: what could be read, by channel number; one volume of several channels where one file holds them all.
    """

    present: set[str] | None = None
    problems: list[Problem] = field(default_factory=list)
    images: dict[int, Volume] = field(default_factory=dict, repr=False)

    @property
    def is_2d(self) -> bool:
        """Whether the images are 2d; such data have no 3d configuration."""
        return any(is_flat(volume.spacing) for volume in self.images.values())

    def error(self, path: Path, text: str) -> None:
        """Adds an error about a file."""
        self.problems.append(Problem(ERROR, f"{path.parent.name}/{path.name}", text))

    def warning(self, path: Path, text: str) -> None:
        """Adds a warning about a file."""
        self.problems.append(Problem(WARNING, f"{path.parent.name}/{path.name}", text))


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


def in_one_file(files: CaseFiles, case: Case | None, table: AnnotationTable) -> bool:
    """Whether all channels of a case are in one file, as in colour images."""
    return len(files.images) == 1 < len(table.channels) - (0 if case is None else len(case.missing))


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


def read_volume(
    path: Path, reader: BaseReaderWriter, finding: Finding, *, is_label: bool = False, headers_only: bool = False
) -> Volume | None:
    """Reads an image or a label map to its end; returns None where it cannot, and adds the reason to the findings."""
    try:
        if headers_only:
            (voxels, properties), broken = read_header(path, reader), 0
        else:
            hidden = verify_whole(path)  # NaN that SimpleITK silently reads as 0, in CT the value of water
            with quiet():
                voxels, properties = reader.read_seg(str(path)) if is_label else reader.read_images((str(path),))
                broken = int(np.count_nonzero(~np.isfinite(voxels))) or hidden
    except MutualError as error:
        finding.error(path, str(error).removeprefix(f"{path} "))
        return None
    except Exception as error:  # every format fails in its own way; the sentence names the file and the reader's reason
        lines = str(error).replace(f'"{path}"', "it").strip().splitlines()
        finding.error(path, f"cannot be read ({lines[-1] if lines else type(error).__name__}); export it again")
        return None
    if voxels.size == 0:
        finding.error(path, f"has the shape {voxels.shape}; expected voxels, export it again")
        return None
    if len(properties["spacing"]) != 3:  # SimpleITK's vectors
        finding.error(path, f"holds several values for each voxel (shape {voxels.shape}); save each as its own file")
        return None
    if is_label and len(voxels) != 1 and not headers_only:
        finding.error(path, _coloured_label_map(voxels))
        return None
    if broken:
        what = "draw them again or set them to 0" if is_label else "replace them, for example by the value of air"
        finding.error(path, f"{broken} voxel(s) are NaN or infinite; {what}")
    spacing = tuple(float(s) for s in properties["spacing"])
    return Volume(path, voxels, spacing, *_position(properties), voxel_ml(properties))


def _coloured_label_map(voxels: NDArray[Any]) -> str:
    equal = (voxels[:3] == voxels[0]).all()
    fix = (
        "save one of them, which are equal," if equal else "turn its colours into the numbers of dataset.json and save"
    )
    return (
        f"has {len(voxels)} channels, a label map one whole number for each voxel; {fix}"
        f"{'' if equal else ' them'} as an image of one channel (grey)"
    )


def _position(properties: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if "sitk_stuff" in properties:
        return tuple(properties["sitk_stuff"]["origin"]), tuple(properties["sitk_stuff"]["direction"])
    if "nibabel_stuff" in properties:
        affine = np.asarray(
            properties["nibabel_stuff"].get("reoriented_affine", properties["nibabel_stuff"]["original_affine"])
        )
        axes = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
        return tuple(affine[:3, 3]), tuple(axes.ravel())
    return None, None


def compare_grids(
    image: Volume, other: Volume, what: str, finding: Finding, *, of: str = "", exactly: bool = False
) -> None:
    """Finds differences of grids; nnU-Net goes by indices, so a shifted grid puts labels on the wrong tissue silently.

    Args:
        image: whose grid is right.
        other: what must lie on it.
        what: other in words, such as "the label map".
        finding: gets the errors.
        of: the image in words; its file name if not given.
        exactly: nnU-Net refuses the smallest difference of spacings, as between channels; else it trains with it.
    """
    of = of or image.path.name
    if image.voxels.shape[1:] != other.voxels.shape[1:]:
        finding.error(
            other.path,
            f"{what} has {_size(other)} voxels, {of} has {_size(image)}; resample it to the grid of the image",
        )
        return
    _compare_spacings(image, other, f"{what} has voxels of", of, finding, exactly)
    if image.origin is None or other.origin is None or image.axes is None or other.axes is None:
        return
    if len(image.axes) != len(other.axes):
        return  # a 2d image and a 3d label map of one slice have no common frame
    if not np.allclose(image.axes, other.axes, atol=1e-2):
        finding.error(
            other.path,
            f"the axes of {what} point in other directions than those of {of}; left and right may be "
            "swapped, resample it to the image",
        )
        return
    shift = np.subtract(other.origin, image.origin)
    if np.abs(shift).max() > 0.5 * min(image.spacing):
        finding.error(
            other.path,
            f"{what} is shifted by {_mm(shift)} mm (x, y, z) against {of}; resample it to the grid of "
            "the image, or correct the header",
        )


def _compare_spacings(image: Volume, other: Volume, what: str, of: str, finding: Finding, exactly: bool) -> None:
    """With NumPy's default tolerance, as nnU-Net's readers and its verify_dataset_integrity do."""
    if np.allclose(image.spacing, other.spacing):
        return
    own, wanted = voxel_sizes(other.spacing, image.spacing)
    fix = f"write it into {other.path.stem}.json" if other.path.suffix in TIFF else "correct the header"
    text = f"{what} {own} mm, {of} of {wanted} mm; {fix} or resample"
    if exactly or not np.allclose(image.spacing, other.spacing, rtol=1e-3):
        finding.error(other.path, text)
    else:
        finding.warning(other.path, f"{text} (nnU-Net trains with it, its --verify_dataset_integrity refuses it)")


def voxel_sizes(one: Sequence[float], other: Sequence[float]) -> tuple[str, str]:
    """Returns two voxel sizes (Z, Y, X) as x, y, z, with as many digits as tell them apart."""
    digits = next((n for n in range(4, 17) if _mm(one[::-1], n) != _mm(other[::-1], n)), 17)
    return _mm(one[::-1], digits), _mm(other[::-1], digits)


def _size(volume: Volume) -> str:
    return " x ".join(str(n) for n in reversed(volume.voxels.shape[1:]))


def _mm(numbers: Iterable[float], digits: int = 4) -> str:
    return " x ".join(f"{number:.{digits}g}" for number in numbers)


def exact(number: float) -> str:
    """As few digits as tell it from its neighbours: 0.9999999 is not 1."""
    return str(np.float32(number)).removesuffix(".0")


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
