"""Which label maps a folder of preprocessed cases was made of.

Thousands of label maps cannot be hashed at each start. Whoever makes preprocessed label maps (``plan_and_preprocess``,
``accept``) therefore notes them in ``nnUNet_preprocessed/D/label_maps_<data identifier>.json``, a line per case: the
bytes of the label map in gt_segmentations, those of the preprocessed one, and the hash of the former. A note counts
while both sizes are as noted; what stock nnU-Net has preprocessed has none and is known by its sizes alone. The record
lies beside the folder of the data, because nnU-Net knows the kind of that folder by the file endings in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_mutual.disk.files import read_json, write_json
from nnunet_mutual.errors import MutualError

TRUTH = "gt_segmentations"
RECORD = "label_maps_"
# Of each case: bytes in gt_segmentations (None: not there, or drawn anew since), bytes preprocessed (None: not there),
# SHA-256 ("": unknown).
Maps = dict[str, list[Any]]


def record_of(data: Path) -> Path:
    """Path of the record of a folder of preprocessed cases."""
    return data.with_name(f"{RECORD}{data.name}.json")


def read_record(data: Path) -> Maps:
    """Reads what was noted about a folder of preprocessed cases; what nobody noted, or nobody can read, is unknown."""
    return _read(record_of(data))


def _read(path: Path) -> Maps:
    try:
        found = read_json(path)
    except MutualError:
        return {}
    return {k: v for k, v in found.items() if isinstance(v, list) and len(v) == 3} if isinstance(found, dict) else {}


def note(label: Path, truth: Path, preprocessed: Path) -> list[Any]:
    """Returns what is noted about a case.

    Args:
        label: the label map, which is hashed.
        truth: its copy in gt_segmentations.
        preprocessed: as nnU-Net preprocessed it.
    """
    return [_bytes(truth), _bytes(preprocessed), hashlib.sha256(label.read_bytes()).hexdigest()]


def record(data: Path, labels: Mapping[str, Path], ending: str) -> None:
    """Notes all label maps of a folder that was just preprocessed, and in other records which are of older ones.

    Args:
        data: ``nnUNet_preprocessed/D/<data identifier>``.
        labels: the label map of each case.
        ending: of label maps.

    Raises:
        MutualError: the record cannot be written.
    """
    truth = data.parent / TRUTH
    notes = {key: note(path, truth / (key + ending), preprocessed_map(data, key)) for key, path in labels.items()}
    write_json(record_of(data), notes)
    for path in data.parent.glob(f"{RECORD}*.json"):
        others = _read(path)
        old = {key for key, known in others.items() if key in notes and known[2] not in ("", notes[key][2])}
        if old:
            write_json(path, {key: [None, *known[1:]] if key in old else known for key, known in others.items()})


def outdated(data: Path, keys: Iterable[str], ending: str) -> list[str]:
    """Returns the cases whose label map in gt_segmentations is another one than was preprocessed.

    Args:
        data: ``nnUNet_preprocessed/D/<data identifier>``.
        keys: the cases.
        ending: of label maps.
    """
    noted = read_record(data)
    found = []
    for key in keys:
        truth, preprocessed = _sizes(data, key, ending)
        known = noted.get(key)
        if known is not None and truth is not None and truth != known[0] and preprocessed == known[1]:
            found.append(key)
    return found


def preprocessed_map(data: Path, key: str) -> Path:
    """Path of a preprocessed label map."""
    return data / f"{key}_seg.b2nd"


def read_maps(data: Path, keys: Iterable[str], ending: str) -> Maps:
    """Returns what is known of the label maps of some cases, from sizes of files and from the record."""
    noted = read_record(data)
    found = {}
    for key in keys:
        sizes = _sizes(data, key, ending)
        known = noted.get(key)
        found[key] = [*sizes, known[2] if known is not None and known[:2] == sizes else ""]
    return found


def _sizes(data: Path, key: str, ending: str) -> list[int | None]:
    """Bytes of the label map in gt_segmentations, and of the preprocessed one."""
    return [_bytes(data.parent / TRUTH / (key + ending)), _bytes(preprocessed_map(data, key))]


def stat_of(path: Path) -> Any:
    """Returns what the file system says of a file; None where there is none."""
    try:
        return path.stat()
    except OSError:
        return None


def _bytes(path: Path) -> int | None:
    found = stat_of(path)
    return found.st_size if found else None
