"""One image in two datasets becomes one case that has what both have drawn, if the drawings allow it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_mutual.datasets.merge.readings import View, resolve
from nnunet_mutual.datasets.merge.scan import Scan
from nnunet_mutual.datasets.merge.sources import MergeSource
from nnunet_mutual.datasets.volumes import exact, voxel_sizes
from nnunet_mutual.disk.images import read_label_map
from nnunet_mutual.errors import MutualError, shorten


@dataclass(frozen=True)
class Contradiction:
    """Voxels of one case that its drawings call differently.

    Attributes:
        group: the scans of the case.
        drawn: what each of them says there.
        voxels: how many.
        volume: in millilitres; None where the image says no size.
        place: index (x, y, z) of one of the voxels, near their middle.
        kept: the label that is written there; None if nobody decided.
    """

    group: tuple[Scan, ...]
    drawn: tuple[str, ...]
    voxels: int
    volume: float | None
    place: tuple[int, ...]
    kept: str | None


def group_equal(scans: Sequence[Scan]) -> list[tuple[Scan, ...]]:
    """Groups scans whose images are voxel for voxel equal; labelled scans come first, then the order of the datasets.

    Raises:
        MutualError: equal images with different headers, or equal but for a constant offset.
    """
    groups: dict[str, list[Scan]] = defaultdict(list)
    shifted: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        groups[scan.equal].append(scan)
        shifted[scan.equal_but_offset].append(scan)
    for found in shifted.values():
        other = next((scan for scan in found if scan.equal != found[0].equal), None)
        if other is not None:
            raise MutualError(
                f"{found[0]} and {other} are the same image, except that all values differ by "
                f"{exact(other.minimum - found[0].minimum)}; bring one of the two datasets to the values of the other "
                "(CT in HU), or remove one of the two cases"
            )
    for found in groups.values():
        _require_same_headers(found)
    return [tuple(sorted(found, key=lambda scan: not scan.labelled)) for found in groups.values()]


def combine(
    group: Sequence[Scan],
    views: Mapping[Scan, View],
    preferred: Sequence[MergeSource],
    reader_of: Mapping[MergeSource, BaseReaderWriter],
) -> tuple[NDArray[Any], dict[str, Any], list[Contradiction]]:
    """Reads the label maps of one image and makes one of them.

    Args:
        group: labelled scans of the image.
        views: what the integers of each of them say.
        preferred: datasets that win where drawings contradict each other, the first one before the others.
        reader_of: reader of each dataset.

    Returns:
        The label map ``(Z, Y, X)`` in merged integers, the properties for the writer, and the contradictions. Where
        nobody decided, the label map holds what the first dataset says.
    """
    combinations: list[tuple[int, ...]] = [()]
    index = np.zeros(1, np.int64)
    properties: dict[str, Any] = {}
    for scan in group:
        voxels, own = read_label_map(reader_of[scan.source], scan.files.label)
        properties = properties or own
        drawn = voxels.astype(np.int64)
        base = int(drawn.max()) + 1
        code = index * base + drawn
        values = np.unique(code)
        combinations = [(*combinations[value // base], int(value % base)) for value in values]
        index = np.searchsorted(values, code)
    ranks = [preferred.index(scan.source) if scan.source in preferred else len(preferred) for scan in group]
    own_views = [views[scan] for scan in group]
    chosen, found = np.zeros(len(combinations), np.int64), []
    for number, integers in enumerate(combinations):
        words = [view.read(integer) for view, integer in zip(own_views, integers, strict=True)]
        verdict = resolve(words, own_views, ranks)
        chosen[number] = own_views[0].write(verdict.word)
        if verdict.contradicted:
            kept = own_views[0].name(verdict.word) if verdict.decided else None
            names = tuple(view.name(word) for view, word in zip(own_views, words, strict=True))
            found.append(_contradiction(tuple(group), names, index == number, kept))
    return chosen[index], properties, found


def refuse_pseudo(group: Sequence[Scan]) -> None:
    """Stops if a label map of an image that occurs twice was drawn by a model: which voxels are certain is not known.

    Raises:
        MutualError: names the case.
    """
    for scan in group:
        if len(group) > 1 and scan.source.case(scan.key).pseudo:
            raise MutualError(
                f"{scan} holds pseudo labels and is the same image as "
                f"{shorten(str(other) for other in group if other is not scan)}; remove it from its dataset, or "
                "its pseudo labels from the label map and the table"
            )


def _require_same_headers(found: Sequence[Scan]) -> None:
    first = found[0]
    for scan in found[1:]:
        if not np.allclose(scan.spacing, first.spacing, rtol=1e-3) or scan.orientation != first.orientation:
            sizes = zip(voxel_sizes(first.spacing, scan.spacing), (first, scan), strict=True)
            one, other = (f"{size} mm {which.orientation or ''}".rstrip() for size, which in sizes)
            raise MutualError(
                f"{first} and {scan} are the same image voxel for voxel, but with different headers (voxels of "
                f"{one} and {other}), so one header is wrong; correct it or remove one of the two"
            )


def _contradiction(
    group: tuple[Scan, ...], drawn: tuple[str, ...], where: NDArray[np.bool_], kept: str | None
) -> Contradiction:
    voxels = np.argwhere(where)
    nearest = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
    size = group[0].voxel_ml
    volume = None if size is None else len(voxels) * size
    return Contradiction(group, drawn, len(voxels), volume, tuple(int(n) for n in nearest[::-1]), kept)
