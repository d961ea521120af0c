"""``nnunet_mutual plan --groups``: declares the modality groups of a dataset in its annotation table."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_mutual.annotation.modality_groups import ModalityGroups, parse_modality_groups
from nnunet_mutual.annotation.table import VERSION, AnnotationTable
from nnunet_mutual.datasets.case_voxels import TOGETHER, first_in_one_file
from nnunet_mutual.datasets.raw import read_dataset_json, training_cases
from nnunet_mutual.datasets.sync import raw_and_preprocessed_differ, refuse_interrupted, sync
from nnunet_mutual.disk.files import keep_backup, write_json
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import BLOCK


def declare_groups(dataset: str | int, entries: Sequence[str]) -> None:
    """Writes the groups into dataset.json of the raw dataset and, if there is one, of the preprocessed dataset.

    A dataset without a table gets one that says that every case annotates every label.

    Args:
        dataset: ID or name of a dataset in nnUNet_raw.
        entries: ``NAME=CHANNEL,CHANNEL`` each, at least two.

    Raises:
        MutualError: a wrong entry; nothing is written then.
    """
    folders = locate(dataset, need_raw=True)
    assert folders.raw is not None
    refuse_interrupted(folders)
    path = folders.raw / "dataset.json"
    content = read_dataset_json(folders.raw)
    table = AnnotationTable.from_dataset_json(content)
    files = training_cases(folders.raw, content)[0]
    if first_in_one_file(files, table) is not None:
        raise MutualError(f"{folders.name}: {TOGETHER}")
    block = content.get(BLOCK)
    if block is None:
        cases = {key: {"source": folders.name} for key in files}
        block = {"version": VERSION, "sources": {folders.name: {"annotated": list(table.labels)}}, "cases": cases}
    groups = parse_modality_groups(entries, table.channels)
    new = {**content, BLOCK: {**block, "modality_groups": groups}}
    ModalityGroups.of(AnnotationTable.from_dataset_json(new))
    backup = keep_backup(path) if BLOCK in content and content[BLOCK] != new[BLOCK] else None
    write_json(path, new)
    shown = ", ".join(f"{name} ({' + '.join(members)})" for name, members in groups.items())
    print(f"{folders.name}: modality groups {shown}" + (f"; the table before: {backup.name}" if backup else ""))
    if raw_and_preprocessed_differ(folders.name):
        sync(folders.name)
    print(f"Next, and how to plan it:  nnunet_mutual check {folders.number}")
