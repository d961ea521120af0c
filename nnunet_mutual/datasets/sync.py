"""The raw and the preprocessed dataset.json must say the same about who annotated what.

nnU-Net copies dataset.json at planning only: a later correction of the table would silently not reach the training.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.table import AnnotationTable, table_fingerprint
from nnunet_mutual.datasets.raw import training_cases
from nnunet_mutual.disk.files import keep_backup, read_json, read_object, write_json
from nnunet_mutual.disk.label_maps import TRUTH
from nnunet_mutual.disk.locate import DatasetFolders, locate, plans_in
from nnunet_mutual.errors import MutualError, shorten, shown
from nnunet_mutual.settings import BLOCK

INTERRUPTED = ".accept.json"  # in the raw dataset while `nnunet_mutual accept` replaces files
_FILES = "dataset"
# What preprocessing and planning depend on: a difference here cannot be copied over.
_PLANNED = ("labels", "regions_class_order", "channel_names", "modality", "file_ending")


def raw_and_preprocessed_differ(dataset_name: str | int) -> str | None:
    """Compares the block of the raw with that of the preprocessed dataset.

    Args:
        dataset_name: ID or name.

    Returns:
        A sentence with the command that repairs it, or None if the blocks, and what planning went by, are equal or one
        of the two folders is absent (trainings run on machines without raw data).

    Raises:
        MutualError: a dataset.json is there and cannot be read.
    """
    try:
        folders = locate(dataset_name)
    except MutualError:
        return None  # neither raw nor preprocessed: nothing to compare
    if said := _interrupted(folders):
        return said
    paths = _paths(folders)
    if paths is None:
        return None
    raw, preprocessed = (read_object(path) for path in paths)
    if said := _planned_otherwise(raw, preprocessed, folders):
        return said
    if table_fingerprint(raw) == table_fingerprint(preprocessed):
        return None
    if BLOCK not in preprocessed:
        what = 'the raw dataset says who annotated what ("mutual" in dataset.json), the preprocessed one does not'
    elif BLOCK not in raw:
        what = 'the preprocessed dataset says who annotated what ("mutual" in dataset.json), the raw one no longer does'
    elif redrawn := _redrawn(folders, raw, preprocessed):
        return _anew(folders, redrawn)
    else:
        what = (
            "the annotation tables of the raw and of the preprocessed dataset.json differ "
            f"({first_difference(raw[BLOCK], preprocessed[BLOCK])})"
        )
    return f"{folders.name}: {what}; if the raw one is right, run nnunet_mutual sync {folders.name}"


def table_changed(trained: Path, preprocessed: Path) -> bool:
    """Whether a dataset says otherwise than a training did who drew what, as after accept.

    Args:
        trained: folder of the training in nnUNet_results.
        preprocessed: of the dataset.
    """
    files = [folder / "dataset.json" for folder in (trained, preprocessed)]
    if not all(file.is_file() for file in files):
        return False
    before, now = map(read_object, files)
    return table_fingerprint(before) != table_fingerprint(now)


def refuse_interrupted(folders: DatasetFolders) -> None:
    """Verifies that no accept was interrupted: the next one would undo what is changed now, and half is replaced.

    Raises:
        MutualError: one was.
    """
    if said := _interrupted(folders):
        raise MutualError(said)


def _interrupted(folders: DatasetFolders) -> str | None:
    if folders.raw is None or not (folders.raw / INTERRUPTED).exists():
        return None
    return (
        f"{folders.name}: nnunet_mutual accept was interrupted while it replaced label maps; run it again with its "
        "review.csv, it first puts back what it had replaced"
    )


def sync(dataset: str | int) -> None:
    """Copies the block of the raw dataset.json into the preprocessed one, and nothing else.

    A block that is replaced is kept in ``dataset.json.bak-<n>`` beside it.

    Args:
        dataset: ID or name of a dataset that is in nnUNet_raw and nnUNet_preprocessed.

    Raises:
        MutualError: labels or channels differ too (then planning must be repeated), or the raw block is not valid.
    """
    folders = locate(dataset, need_raw=True, need_preprocessed=True)
    refuse_interrupted(folders)
    paths = _paths(folders)
    if paths is None:
        raise MutualError(
            f"{folders.name} has no dataset.json in nnUNet_raw or nnUNet_preprocessed; run "
            f"nnunet_mutual plan_and_preprocess -d {folders.number} first"
        )
    raw, preprocessed = (read_object(path) for path in paths)
    if said := _planned_otherwise(raw, preprocessed, folders):
        raise MutualError(said)
    AnnotationTable.from_dataset_json(raw)
    if table_fingerprint(raw) == table_fingerprint(preprocessed):
        print(f"{folders.name}: the raw and the preprocessed annotation table are equal, nothing to do")
        return
    if redrawn := _redrawn(folders, raw, preprocessed):
        raise MutualError(_anew(folders, redrawn))
    backup = keep_backup(paths[1]) if BLOCK in preprocessed else None
    write_json(paths[1], _with(preprocessed, raw, BLOCK))
    print(f"{folders.name}: annotation table copied to {paths[1]}" + (f" (before: {backup.name})" if backup else ""))


def take_over(folders: DatasetFolders) -> None:
    """Copies the raw block where the cases have just been preprocessed, so that they are as it says."""
    paths = _paths(folders)
    if paths is not None:
        raw, preprocessed = (read_object(path) for path in paths)
        if table_fingerprint(raw) != table_fingerprint(preprocessed):
            keep_backup(paths[1])
            write_json(paths[1], {**preprocessed, **{key: raw[key] for key in (BLOCK, "numTraining") if key in raw}})


def take_over_files(folders: DatasetFolders) -> None:
    """Copies which files are the training cases ("dataset"): nnU-Net preprocesses those that it planned with."""
    paths = _paths(folders)
    if paths is not None:
        raw, preprocessed = (read_object(path) for path in paths)
        if raw.get(_FILES) != preprocessed.get(_FILES):
            write_json(paths[1], _with(preprocessed, raw, _FILES))


def _with(preprocessed: Mapping[str, Any], raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns the content of the preprocessed dataset.json with an entry of the raw one, or without it as that is."""
    others = {name: value for name, value in preprocessed.items() if name != key}
    return {**others, key: raw[key]} if key in raw else others


def _redrawn(folders: DatasetFolders, raw: Any, preprocessed: Any) -> list[str]:
    """Returns cases of which the tables differ, and whose label maps were drawn anew since they were preprocessed."""
    assert folders.raw is not None and folders.preprocessed is not None
    old, new = (_cases(content.get(BLOCK)) for content in (preprocessed, raw))
    changed = {key for key in new if old.get(key) != new[key]}
    truth, ending = folders.preprocessed / TRUTH, raw["file_ending"]
    labels = {key: files.label for key, files in training_cases(folders.raw, raw)[0].items() if key in changed}
    pairs = {key: (label, truth / (key + ending)) for key, label in labels.items()}
    return [
        key
        for key, files in pairs.items()
        if all(f.is_file() for f in files) and not filecmp.cmp(*files, shallow=False)
    ]


def _cases(block: Any) -> dict[str, Any]:
    """Returns what each case says, and what its source says for it."""
    parts = [block.get(part) if isinstance(block, Mapping) else None for part in ("sources", "cases")]
    sources, cases = (part if isinstance(part, Mapping) else {} for part in parts)
    said = {key: entry.get("source") if isinstance(entry, Mapping) else None for key, entry in cases.items()}
    return {key: (sources.get(said[key]) if isinstance(said[key], str) else None, cases[key]) for key in cases}


def _anew(folders: DatasetFolders, redrawn: Sequence[str]) -> str:
    assert folders.preprocessed is not None
    command = f"nnunet_mutual plan_and_preprocess -d {folders.number} --as-planned"
    commands = [f"{command} {plans}" for plans in plans_in(folders.preprocessed) or ["nnUNetPlans"]]
    return (
        f"{folders.name}: the label maps of {len(redrawn)} case(s) ({shorten(redrawn, 3)}) were drawn anew since they "
        f"were preprocessed, as the table says; preprocess them, which takes the table over, too: {'; '.join(commands)}"
    )


def refuse_planned_otherwise(folders: DatasetFolders) -> None:
    """Verifies that labels and channels are those that plans were made for.

    Raises:
        MutualError: they are others.
    """
    paths = _paths(folders)
    if paths is not None:
        raw, preprocessed = (read_object(path) for path in paths)
        if said := _other_entry(raw, preprocessed, folders):
            raise MutualError(said)


def _planned_otherwise(raw: Any, preprocessed: Any, folders: DatasetFolders) -> str | None:
    """Says what cannot be copied over, since planning and preprocessing went by it."""
    if case := _channels_otherwise(raw, preprocessed, folders):
        return (
            f"{folders.name}: the channels that case {case} lacks are others in the raw dataset.json than in the "
            "preprocessed one, by which the data of modality groups were made; put them back, or plan again: "
            f"nnunet_mutual plan_and_preprocess -d {folders.number}"
        )
    return _other_entry(raw, preprocessed, folders)


def _other_entry(raw: Any, preprocessed: Any, folders: DatasetFolders) -> str | None:
    key = next((key for key in _PLANNED if raw.get(key) != preprocessed.get(key)), None)
    if key is None:
        return None
    return (
        f'{folders.name}: "{key}" of the raw dataset.json is {shown(raw.get(key))}, of the preprocessed one '
        f"{shown(preprocessed.get(key))}; put it back, or plan again: nnunet_mutual plan_and_preprocess -d "
        f"{folders.number} --clean"
    )


def _channels_otherwise(raw: Any, preprocessed: Any, folders: DatasetFolders) -> str | None:
    """Returns a labelled case that lacks other channels than when it was preprocessed by modality group, if any does.

    Images without labels are done again by ``preprocess_unlabelled``.
    """
    old, new = (content.get(BLOCK) for content in (preprocessed, raw))
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)) or folders.preprocessed is None:
        return None
    before, now = _lacking(old), _lacking(new)
    others = [key for key in before if key in now and before[key] != now[key]]
    truth, ending = folders.preprocessed / TRUTH, str(preprocessed.get("file_ending"))
    labelled = next((key for key in others if (truth / (key + ending)).is_file()), None)
    return labelled if labelled is not None and _planned_by_group(folders.preprocessed) else None


def _planned_by_group(preprocessed: Path) -> bool:
    """Whether there are plans of modality groups."""
    plans = (read_json(file) for file in preprocessed.glob("*.json"))
    return any(isinstance(content, Mapping) and PLANS_KEY in content for content in plans)


def _lacking(block: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the channels that each case lacks; what is wrong with an entry is said by whoever reads the table."""
    cases = block.get("cases")
    entries = cases.items() if isinstance(cases, Mapping) else ()
    lacks = {key: entry.get("missing", []) for key, entry in entries if isinstance(entry, Mapping)}
    return {key: sorted(map(str, names)) for key, names in lacks.items() if isinstance(names, list)}


def _paths(folders: DatasetFolders) -> tuple[Path, Path] | None:
    if folders.raw is None or folders.preprocessed is None:
        return None
    paths = folders.raw / "dataset.json", folders.preprocessed / "dataset.json"
    return paths if all(path.is_file() for path in paths) else None


def first_difference(raw: Any, preprocessed: Any, place: str = "") -> str:
    """Names the first entry that differs, such as 'cases/siteA_001/annotated'."""
    if isinstance(raw, dict) and isinstance(preprocessed, dict):
        for key in [*raw, *preprocessed]:
            if raw.get(key) != preprocessed.get(key):
                return first_difference(raw.get(key), preprocessed.get(key), f"{place}/{key}" if place else key)
    return f"first at {place}" if place else "the order of the modality groups"
