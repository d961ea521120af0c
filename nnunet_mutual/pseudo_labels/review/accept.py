"""`nnunet_mutual accept`: what a reader accepted or corrected becomes a true label, everywhere or nowhere."""

from __future__ import annotations

import copy
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.entries import drawn_entry, outlined_entry
from nnunet_mutual.annotation.table import AnnotationTable, table_fingerprint
from nnunet_mutual.datasets.raw import CaseFiles, read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.datasets.sync import INTERRUPTED, raw_and_preprocessed_differ
from nnunet_mutual.disk.cores import each_case
from nnunet_mutual.disk.files import read_object, write_json
from nnunet_mutual.disk.folders import temporary_folder
from nnunet_mutual.disk.images import reader_for
from nnunet_mutual.disk.label_maps import TRUTH, note, preprocessed_map, read_record, record_of
from nnunet_mutual.disk.locate import DatasetFolders, locate
from nnunet_mutual.disk.swap import BACKUP, Roots, Swap, forget_old, swap_all, undo
from nnunet_mutual.disk.trainings import plans_option
from nnunet_mutual.errors import MutualError, typed
from nnunet_mutual.pseudo_labels.review.arrivals import (
    declared,
    leave_unlabelled,
    require_no_drawing,
    require_other_names,
    require_sources,
    swaps_of_folds,
    swaps_of_images,
    with_unlabelled,
)
from nnunet_mutual.pseudo_labels.review.merge import CorrectedCase, merged_aside
from nnunet_mutual.pseudo_labels.review.preprocessed import Data, data_of
from nnunet_mutual.pseudo_labels.review.verdicts import (
    ABSENT,
    DECISIONS,
    TABLE,
    Manifest,
    Verdict,
    read_manifest,
    read_verdicts,
)
from nnunet_mutual.settings import BLOCK

_CHANGED = (BLOCK, "numTraining")  # of dataset.json


@dataclass(frozen=True)
class _Dataset:
    """The dataset as it is before; ``declares`` is its table, '' where it has none yet."""

    folders: DatasetFolders
    raw: Path
    declares: str
    content: dict[str, Any]
    table: AnnotationTable
    files: Mapping[str, CaseFiles]
    reader: BaseReaderWriter
    data: Sequence[Data]

    def arrivals(self, keys: Iterable[str]) -> list[str]:
        """The cases that have lain in imagesUn until now."""
        return [key for key in keys if self.files[key].unlabelled]

    def label(self, key: str) -> Path:
        """Where the label map of a case is, or will be."""
        return self.raw / "labelsTr" / self.files[key].label.name

    def data_with(self, keys: Iterable[str]) -> list[Data]:
        """The preprocessed data that hold one of some cases, or will."""
        return [data for data in self.data if any(self.files[key].unlabelled or data.holds(key) for key in keys)]

    @property
    def preprocessed(self) -> Path | None:
        return self.folders.preprocessed

    @property
    def roots(self) -> Roots:
        return _roots(self.folders)


def accept(dataset: str, table_file: str, *, dry_run: bool, keep_drawn: bool, weight: float = 1.0) -> None:
    """Writes accepted masks into labelsTr and brings the annotation table and all preprocessed data up to date.

    Args:
        dataset: ID or name.
        table_file: a filled ``review.csv``.
        dry_run: only say what would change.
        keep_drawn: keep the drawing where a mask contradicts it, instead of refusing the mask.
        weight: how much trainings believe accepted masks, above 0 and at most 1, where a drawn one counts 1.

    Raises:
        MutualError: an entry or a mask cannot be used, or something cannot be written; nothing is changed then.
    """
    if not 0 < weight <= 1:
        raise MutualError(f"--weight {weight:g}: it must be above 0 and at most 1, as much as a drawing counts")
    path = Path(table_file)
    manifest = read_manifest(path)
    folders = locate(dataset, need_raw=True)
    assert folders.raw is not None
    if manifest.dataset != folders.name:
        raise MutualError(f"{path} is a review of {manifest.dataset}, not of {folders.name}; name that dataset")
    with ExitStack() as stack:
        if (folders.raw / INTERRUPTED).exists() and dry_run:
            raise MutualError(
                f"an accept of {folders.name} was interrupted; run it without --dry-run, which mends that"
            )
        scratch = {}
        if not dry_run:
            roots = [root for root in _roots(folders).values() if root is not None]
            scratch = {r: stack.enter_context(temporary_folder(r / "accept", "accept", "staged")) for r in roots}
            _mend(folders)
        opened = _open(folders)
        verdicts = read_verdicts(path, manifest, opened.table)
        chosen = [verdict for verdict in verdicts if verdict.annotates]
        gone = [verdict for verdict in chosen if verdict.case not in opened.files]
        if gone:
            raise MutualError(f"{gone[0].place}: {gone[0].case} has no image in imagesTr any more; remove the line")
        arrived = opened.arrivals(dict.fromkeys(verdict.case for verdict in chosen))
        require_sources(opened.content, arrived)
        require_no_drawing([opened.files[key] for key in arrived], opened.label)
        place = None if dry_run else scratch[opened.raw] / "labelsTr"
        merged = _merged(chosen, opened, place, keep_drawn=keep_drawn, weight=weight)
        _say(verdicts, merged, opened, dry_run)
        if weight != 1:
            print(f"Accepted masks count {weight:g} in trainings, where a drawn label counts 1")
        if merged and not dry_run:
            _change(opened, merged, scratch, path)
        again = f"{typed(path)}{' --keep-drawn' * keep_drawn}{'' if weight == 1 else f' --weight {weight:g}'}"
        _say_next(path, verdicts, manifest, opened, merged, again if dry_run else None)


def _open(folders: DatasetFolders) -> _Dataset:
    assert folders.raw is not None
    difference = raw_and_preprocessed_differ(folders.name)
    if difference:
        raise MutualError(difference)
    content = read_dataset_json(folders.raw)
    if "dataset" in content:
        raise MutualError(
            f'{folders.raw / "dataset.json"} lists its files under "dataset", perhaps of other datasets; accept '
            "writes into labelsTr only, so copy the label maps there and the images into imagesTr, and remove the entry"
        )
    files, _ = training_cases(folders.raw, content)
    declares, content = table_fingerprint(content), declared(content, files)
    table = AnnotationTable.from_dataset_json(content)
    apart, _ = unlabelled_cases(folders.raw, content, files)
    require_other_names(folders.raw, apart, files)
    files = {**apart, **files}
    reader = reader_for(content, [path for case in files.values() for path in case.images.values()])
    data = [] if folders.preprocessed is None else data_of(folders.preprocessed)
    return _Dataset(folders, folders.raw, declares, content, with_unlabelled(table, apart), files, reader, data)


def _merged(
    chosen: Sequence[Verdict], opened: _Dataset, place: Path | None, **options: Any
) -> dict[str, CorrectedCase]:
    """Merges what a reader says about each case; new label maps go into a folder, so that none stays in memory."""
    own: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in chosen:
        own[verdict.case].append(verdict)
    known = {"table": opened.table, "reader": opened.reader, **options}
    jobs = [(opened.files[key], said) for key, said in own.items()]
    try:
        done = each_case(partial(merged_aside, place=place, **known), jobs, doing="reading")
        return dict(zip(own, done, strict=True))
    except (OSError, RuntimeError) as error:  # SimpleITK reports a full disk as RuntimeError
        raise _nothing_changed(opened, error) from error


def _change(opened: _Dataset, merged: Mapping[str, CorrectedCase], scratch: Mapping[Path, Path], table: Path) -> None:
    """Prepares everything aside, then puts it into place at once."""
    content = _new_content(opened, [case.case for case in merged.values()])
    arrived = [opened.files[key] for key in opened.arrivals(merged)]
    try:
        swaps = [_backup(opened, merged, scratch[opened.raw], table)]
        for key in tqdm(merged, desc="preprocessing", unit="case", file=sys.stderr, leave=False):
            label = opened.label(key)
            new = scratch[opened.raw] / "labelsTr" / label.name
            swaps += _swaps_of_data(opened, key, new, content, scratch)
            swaps.append(Swap(new, label))
        swaps += swaps_of_images(arrived, opened.raw, scratch[opened.raw])
        swaps += swaps_of_folds(opened.preprocessed, AnnotationTable.from_dataset_json(content), arrived, scratch)
        swaps += _swaps_of_records(opened, merged, scratch)
        # Last, and the raw one after the preprocessed one: a training that meets them in between refuses to start.
        for root in (opened.preprocessed, opened.raw):
            if root is not None and (root / "dataset.json").is_file():
                new, now = scratch[root] / "dataset.json", read_object(root / "dataset.json")
                if table_fingerprint(now) != opened.declares:
                    raise MutualError(
                        f"the annotation table in {root / 'dataset.json'} was changed while accept was at work, which "
                        "changed nothing; repeat"
                    )
                write_json(new, {**now, **{key: content[key] for key in _CHANGED}})
                swaps.append(Swap(new, root / "dataset.json"))
        swap_all(swaps, opened.raw / INTERRUPTED, opened.roots)
    except (OSError, RuntimeError) as error:
        if (opened.raw / INTERRUPTED).exists():
            raise MutualError(
                f"files of {opened.folders.name} could be neither replaced nor put back ({error}); get write "
                "permission for them, then run nnunet_mutual accept again, which puts them back first"
            ) from error
        raise _nothing_changed(opened, error) from error
    finally:
        if not (opened.raw / INTERRUPTED).exists():
            for root in scratch:
                forget_old(root)
    print(f"The label maps and dataset.json as they were before: {swaps[0].target}")
    leave_unlabelled(arrived)


def _new_content(opened: _Dataset, cases: Sequence[Case]) -> dict[str, Any]:
    """Returns dataset.json with the new annotations."""
    content = copy.deepcopy(opened.content)
    for case in cases:
        entry = content[BLOCK]["cases"].setdefault(case.key, {"source": case.source})
        for name in ("annotated", "incomplete", "pseudo", "outlined"):
            entry.pop(name, None)
        source = content[BLOCK]["sources"][case.source]
        entry |= drawn_entry(source, case.annotated, case.incomplete, case.pseudo, opened.table.labels)
        entry |= outlined_entry(case.outlined)
    AnnotationTable.from_dataset_json(content)
    content["numTraining"] = sum(not files.unlabelled for files in opened.files.values()) + len(
        opened.arrivals(case.key for case in cases)
    )
    return content


def _backup(opened: _Dataset, merged: Mapping[str, CorrectedCase], scratch: Path, table: Path) -> Swap:
    """A copy of all that changes in the raw dataset, and of the table that says why."""
    number = 1
    while (place := opened.raw / f"{BACKUP}{number}").exists():
        number += 1
    folder = scratch / place.name
    folder.mkdir()
    old = [opened.label(key) for key in merged if not opened.files[key].unlabelled]
    for file in [*old, opened.raw / "dataset.json"]:
        shutil.copy2(file, folder / file.name)
    shutil.copy2(table, folder / TABLE)  # whatever it is called
    return Swap(folder, place)


def _swaps_of_data(
    opened: _Dataset, key: str, label: Path, content: Mapping[str, Any], scratch: Mapping[Path, Path]
) -> list[Swap]:
    """Preprocesses a case anew wherever it was preprocessed."""
    root = opened.preprocessed
    if root is None:
        return []
    swaps = []
    for data in opened.data_with([key]):
        folder = scratch[root] / data.folder.name
        folder.mkdir(exist_ok=True)
        for new in data.make(opened.files[key], label, content, folder):
            swaps.append(Swap(new, data.folder / new.name))
    if (root / TRUTH).is_dir():
        new = scratch[root] / label.name
        shutil.copyfile(label, new)
        swaps.append(Swap(new, root / TRUTH / label.name))
    return swaps


def _roots(folders: DatasetFolders) -> Roots:
    """The folders that accept writes into, as its journal calls them."""
    return {"raw": folders.raw, "preprocessed": folders.preprocessed}


def _swaps_of_records(
    opened: _Dataset, merged: Mapping[str, CorrectedCase], scratch: Mapping[Path, Path]
) -> list[Swap]:
    """Notes the new label maps where trainings look whether theirs changed."""
    root, swaps = opened.preprocessed, []
    for data in opened.data if root is not None else ():
        assert root is not None
        names = {key: opened.label(key).name for key in merged if data in opened.data_with([key])}
        notes = {
            key: note(scratch[opened.raw] / "labelsTr" / name, scratch[root] / name, preprocessed_map(made, key))
            for made in [scratch[root] / data.folder.name]
            for key, name in names.items()
        }
        if notes:
            place = record_of(data.folder)
            write_json(scratch[root] / place.name, {**read_record(data.folder), **notes})
            swaps.append(Swap(scratch[root] / place.name, place))
    return swaps


def _mend(folders: DatasetFolders) -> None:
    """Puts back what a killed accept has left half-done."""
    assert folders.raw is not None
    journal = folders.raw / INTERRUPTED
    if journal.exists():
        try:
            undo(journal, _roots(folders))
        except OSError as error:
            raise MutualError(
                f"an accept was interrupted, and what it had replaced cannot be put back ({error}); get write "
                "permission for that file, then repeat"
            ) from None
        print("An accept that was interrupted has been undone first")
    for root in _roots(folders).values():
        if root is not None:
            forget_old(root)


def _nothing_changed(opened: _Dataset, error: Exception) -> MutualError:
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    reason = lines[-1] if lines else type(error).__name__
    return MutualError(
        f"the new labels of {opened.folders.name} could not be written ({reason}) and nothing was changed; free space "
        f"or get write permission for {opened.raw} and {opened.preprocessed}, then repeat"
    )


def _say(verdicts: Sequence[Verdict], merged: Mapping[str, CorrectedCase], opened: _Dataset, dry_run: bool) -> None:
    """Says what becomes of what, before it does."""
    for case in merged.values():
        print("\n".join(case.said))
    counts = Counter(verdict.decision for verdict in verdicts)
    words = dict(zip(DECISIONS, ("accepted", "corrected", "absent", "rejected"), strict=True))
    number = sum(len(case.said) for case in merged.values())
    print(f"{number} new true label(s) in {len(merged)} case(s) of {opened.folders.name}")
    decided = ", ".join(f"{counts[decision]} {word}" for decision, word in words.items())
    print(f"{decided}, {counts['']} undecided; rejected and undecided ones stay unknown, as they were")
    if arrived := opened.arrivals(merged):
        print(f"New training cases, whose images move from imagesUn to imagesTr: {', '.join(arrived)}")
    absent = [verdict for verdict in verdicts if verdict.decision == ABSENT]
    for label in dict.fromkeys(verdict.label for verdict in absent):
        cases = [verdict.case for verdict in absent if verdict.label == label]
        print(f"Absent by that word, which trainings believe: {label} in {len(cases)} case(s): {', '.join(cases)}")
    if merged:
        folders = [data.folder.name for data in opened.data_with(merged)]
        made = f"labelsTr, dataset.json, preprocessed data ({', '.join(folders) or 'none'})"
        print(f"{'Would change' if dry_run else 'Changing'}: {made}")


def _say_next(
    table: Path,
    verdicts: Sequence[Verdict],
    manifest: Manifest,
    opened: _Dataset,
    changed: Iterable[str],
    again: str | None,
) -> None:
    number = opened.folders.number
    if not changed and any(not verdict.decision for verdict in verdicts):
        words = f"{', '.join(DECISIONS[:-1])} or {DECISIONS[-1]}"
        print(f"Nothing was changed. Next: write {words} into the column 'decision' of {table}, and repeat")
    elif not changed:
        print("Nothing was changed: what is rejected stays unknown")
    elif again is not None:
        print("Nothing was changed. Next, to change it:")
        print(f"  nnunet_mutual accept {number} {again}")
    else:
        after = "move the old training's folder away and train anew (not with --c)"
        trained = None if opened.preprocessed is None else manifest.training
        print(f"Next, check the dataset, {'which says how to train' if trained is None else after}:")
        if opened.arrivals(changed) and opened.preprocessed is not None:
            chosen = "" if manifest.training is None else plans_option(manifest.training.plans)
            print(f"  nnunet_mutual preprocess_unlabelled -d {number}{chosen}")
        print(f"  nnunet_mutual check {number}")
        if trained is not None:
            print(f"  {trained.command}")
