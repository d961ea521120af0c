"""How a folder of cases was preprocessed by modality group: in which order, and which channels each case lacked.

Kept in ``nnUNet_preprocessed/D/modality_groups_<data identifier>.json``, beside the record of label maps and for the
same reason: a configuration that is not preprocessed again when groups or gaps change still holds what it was made of.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nnunet_mutual.annotation.modality_groups import declared_groups
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.locate import GROUPS


def _file(data: Path) -> Path:
    return data.with_name(f"{GROUPS}{data.name}.json")


def note_groups(data: Path, table: AnnotationTable, keys: Iterable[str]) -> None:
    """Notes how cases were just preprocessed.

    Args:
        data: ``nnUNet_preprocessed/D/<data identifier>``.
        table: by which they were.
        keys: the cases.

    Raises:
        MutualError: the note cannot be written.
    """
    missing = {key: sorted(table.case(key).missing) for key in keys}
    write_json(_file(data), {"groups": [*declared_groups(table).items()], "missing": missing})


def grouped_otherwise(data: Path, table: AnnotationTable, keys: Iterable[str]) -> list[str]:
    """Returns the cases that were preprocessed for other groups, or as if they lacked other channels.

    Args:
        data: as in :func:`note_groups`.
        table: as it is now.
        keys: the cases; of those that came since, or where nobody noted anything, nothing is known.

    Raises:
        MutualError: the note is damaged.
    """
    if not table.modality_groups or not _file(data).is_file():
        return []
    noted = read_object(_file(data))
    same = noted.get("groups") == [[*group] for group in declared_groups(table).items()]
    then = noted.get("missing", {})
    return [key for key in keys if key in then and not (same and then[key] == sorted(table.case(key).missing))]
