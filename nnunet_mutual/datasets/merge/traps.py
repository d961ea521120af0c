"""What goes wrong silently when datasets are put together: flipped bodies, shifted HU, shared patients, empty masks."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_mutual.datasets.coverage import columns, fully_drawn
from nnunet_mutual.datasets.merge.agreement import NIFTI, REORIENT
from nnunet_mutual.datasets.merge.scan import PERCENTILES, Scan
from nnunet_mutual.datasets.merge.sources import MergeSource
from nnunet_mutual.datasets.problems import ERROR, Problem
from nnunet_mutual.disk.files import natural
from nnunet_mutual.errors import MutualError, shorten

# Channels whose values nnU-Net takes as they are; the others are scaled image by image, so that an offset is harmless.
_ABSOLUTE = ("ct", "nonorm", "rgb_to_0_1")
_SHIFT_HU = 500.0  # air to water is 1000, usual offsets are 1000 and 1024; what differs between body parts is less
_SPREAD = 5.0


def refuse_broken(problems: Mapping[str, Sequence[Problem]]) -> list[str]:
    """Stops at files with errors; returns the warnings.

    Raises:
        MutualError: counts the errors of each dataset and quotes the first one.
    """
    errors = {name: [p for p in found if p.severity == ERROR] for name, found in problems.items()}
    errors = {name: found for name, found in errors.items() if found}
    if errors:
        name, found = next(iter(errors.items()))
        counts = ", ".join(f"{len(found)} in {name}" for name, found in errors.items())
        raise MutualError(
            f"files or tables have errors ({counts}); the first is {name}/{found[0].place}: {found[0].text}; correct "
            f"them all (nnunet_mutual check {name} lists them) and merge again, nothing was written"
        )
    return [f"{name}/{p.place}: {p.text}" for name, found in problems.items() for p in found]


def refuse_empty(scans: Sequence[Scan], *, accepted: bool) -> None:
    """Stops at empty label maps in datasets without a table, where nobody said that somebody looked.

    Raises:
        MutualError: names the cases.
    """
    empty = [scan for scan in scans if scan.labelled and not scan.present and not scan.source.table.declared]
    if empty and not accepted:
        raise MutualError(
            f"{len(empty)} label map(s) hold no label ({shorten(map(str, empty))}): if the structures are truly absent "
            "there, repeat with --accept-empty, but if nobody drew them, move the images to imagesUn/ of their dataset"
        )


def without_table(scans: Sequence[Scan]) -> list[str]:
    """Returns what each dataset without a table claims where that may be wrong: labels that some cases lack."""
    found = []
    for source in dict.fromkeys(scan.source for scan in scans if scan.labelled and not scan.source.table.declared):
        own = [scan for scan in scans if scan.labelled and scan.source is source]
        present = {label: sum(label in scan.present for scan in own) for label in source.labels}
        if min(present.values()) < len(own):
            found.append(fully_drawn(source.name, len(own), present))
    return found


def must_reorient(scans: Sequence[Scan], ending: str, *, reorient: bool) -> bool:
    """Whether the merged dataset needs nnU-Net's reader that turns all images into one orientation.

    Args:
        scans: of all cases.
        ending: of the merged dataset; only NIfTI files can be turned.
        reorient: it was asked for.

    Raises:
        MutualError: orientations differ, and nobody allowed to turn the images.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for scan in scans:
        if scan.orientation is not None:
            found[scan.orientation][scan.source.short] += 1
    already = {
        source.dataset_json.get("overwrite_image_reader_writer") == REORIENT for source in {s.source for s in scans}
    }
    if reorient or (already == {True} and ending in NIFTI):
        return True
    if len(found) < 2:
        return True in already and ending in NIFTI
    shown = "; ".join(
        f"{code} in {', '.join(f'{number} case(s) of {name}' for name, number in counts.items())}"
        for code, counts in found.items()
    )
    raise MutualError(
        f"the images lie in different orientations ({shown}), and nnU-Net, which goes by the order of the voxels, "
        "would take left for right in some of them; repeat with --reorient, by which nnU-Net turns every image when it "
        "reads it, or convert the images first"
    )


def intensity_table(scans: Sequence[Scan], channels: Sequence[str]) -> str:
    """Returns the percentiles of each source as text, one row per source and channel."""
    rows = [["channel", "source", *(f"{p:g} %" for p in PERCENTILES)]]
    for number, channel in enumerate(channels):
        for short, values in _by_source(scans, number).items():
            rows.append([channel, short, *("-" if np.isnan(v) else f"{v:.4g}" for v in _median(values))])
    return "intensities (percentiles of an image, median over the cases)\n" + columns(rows)


def refuse_intensities(scans: Sequence[Scan], channels: Sequence[str], *, accepted: bool) -> list[str]:
    """Compares the percentiles of sources with each other, and of cases with their source.

    Returns:
        Warnings, if the differences were accepted.

    Raises:
        MutualError: the first difference, with numbers and what to do.
    """
    found = []
    for number, channel in enumerate(channels):
        if channel.casefold() in _ABSOLUTE:
            by_source = _by_source(scans, number)
            medians = {short: _median(values) for short, values in by_source.items()}
            for (a, first), (b, second) in itertools.combinations(medians.items(), 2):
                if reason := _far(first, second, channel):
                    found.append(_difference(a, first, b, second, channel, reason))
            for short, values in by_source.items():
                odd = [key for key, row in values.items() if _far(medians[short], row, channel)]
                if odd:
                    row = values[odd[0]]
                    reason = _far(medians[short], row, channel)
                    found.append(
                        _difference(f"{short} on the whole", medians[short], shorten(odd), row, channel, reason)
                    )
    if found and not accepted:
        raise MutualError(
            f"{found[0]}; store the images of one in the units of the other, or repeat with --accept-intensities if "
            "this is right" + (f" ({len(found) - 1} more such difference(s))" if len(found) > 1 else "")
        )
    return found


def shared_patients(sources: Sequence[MergeSource]) -> dict[str, list[MergeSource]]:
    """Returns the patients that two or more datasets name in their tables."""
    found: dict[str, list[MergeSource]] = defaultdict(list)
    for source in sources:
        for patient in sorted({case.patient for case in source.table.cases.values() if case.patient}, key=natural):
            found[patient].append(source)
    return {patient: where for patient, where in found.items() if len(where) > 1}


def refuse_shared_patients(sources: Sequence[MergeSource], decision: str | None) -> None:
    """Stops if two datasets name the same patient and nobody said whether it is one person.

    Raises:
        MutualError: names the patients.
    """
    shared = shared_patients(sources)
    if shared and decision is None:
        patient, where = next(iter(shared.items()))
        raise MutualError(
            f"{len(shared)} patient name(s) occur in two datasets (first: {patient!r} in "
            f"{' and '.join(source.name for source in where)}); if they are the same persons, add --patients same "
            "(their cases then stay in one fold), if the names only happen to be equal, --patients separate"
        )


def same_names(scans: Sequence[Scan]) -> list[str]:
    """Returns a note if cases of two datasets have the same name but other voxels, as two scans of one patient may."""
    places: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        places[scan.key].append(scan)
    twice = [
        key
        for key, found in places.items()
        if len({scan.source for scan in found}) > 1 and len({scan.equal for scan in found}) > 1
    ]
    if not twice:
        return []
    return [
        f"{len(twice)} case name(s) occur in two datasets with different images ({shorten(twice)}); if these are the "
        'same patients, give them the same "patient" in both tables (nnunet_mutual annotate) and merge again'
    ]


def _by_source(scans: Sequence[Scan], channel: int) -> dict[str, dict[str, NDArray[np.float64]]]:
    found: dict[str, dict[str, NDArray[np.float64]]] = defaultdict(dict)
    for scan in scans:
        found[scan.source.short][scan.key] = scan.percentiles[channel]
    return found


def _median(values: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    rows = np.stack(list(values.values()))
    rows = rows[~np.isnan(rows).any(axis=1)]
    return np.median(rows, axis=0) if len(rows) else np.full(len(PERCENTILES), np.nan)


def _far(first: NDArray[np.float64], second: NDArray[np.float64], channel: str) -> str:
    """Returns how two sets of percentiles differ, '' if not more than body parts and scanners do."""
    if np.isnan(first).any() or np.isnan(second).any():
        return ""
    low, high = second[0] - first[0], second[-1] - first[-1]
    spread = first[-1] - first[0], second[-1] - second[0]
    limit = _SHIFT_HU if channel.casefold() == "ct" else max(spread) / 2
    if max(spread) > _SPREAD * min(spread):
        return "as if one were scaled"
    if low * high > 0 and min(abs(low), abs(high)) > limit:
        usual = " (images stored as HU + 1000 or + 1024?)" if channel.casefold() == "ct" else ""
        return f"shifted by about {low:+.0f}{usual}"
    return ""


def _difference(
    a: str, first: NDArray[np.float64], b: str, second: NDArray[np.float64], channel: str, reason: str
) -> str:
    def shown(row: NDArray[np.float64]) -> str:
        return " / ".join(f"{value:.4g}" for value in row)

    return (
        f"the {channel} intensities of {b} are far from those of {a}, {reason}: {shown(second)} against {shown(first)} "
        f"({' / '.join(f'{p:g}' for p in PERCENTILES)} % percentiles)"
    )
