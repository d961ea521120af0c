"""The command ``merge``: several nnU-Net datasets become one that says who drew what."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.coverage import coverage, format_coverage
from nnunet_mutual.datasets.merge import traps
from nnunet_mutual.datasets.merge.agreement import REORIENT, Target, agree, similar_labels
from nnunet_mutual.datasets.merge.contains import decide_contains
from nnunet_mutual.datasets.merge.identical import Contradiction, combine, group_equal, refuse_pseudo
from nnunet_mutual.datasets.merge.merged_cases import MergedCase, merged_cases, merged_dataset_json, view_of
from nnunet_mutual.datasets.merge.merged_folder import CONTRADICTIONS, write_contradictions, write_dataset
from nnunet_mutual.datasets.merge.readings import View
from nnunet_mutual.datasets.merge.scan import Scan, readers, scan
from nnunet_mutual.datasets.merge.sources import MergeSource, dataset_named, load_sources
from nnunet_mutual.datasets.new_dataset import free_place
from nnunet_mutual.errors import MutualError


@dataclass(frozen=True)
class MergeOptions:
    """Answers to what files cannot say.

    Attributes:
        rename: ``"SRC:old=new"``.
        contains: ``"SRC:liver=liver_tumour"``: the tumour was drawn as part of the liver.
        no_contains: of the same form: it was left out.
        prefer: datasets that win where drawings of one image contradict each other.
        patients: 'same' or 'separate', for patient names that occur in two datasets.
        reorient: let nnU-Net turn all images into one orientation.
        accept_intensities: intensities that are far apart are right.
        accept_empty: empty label maps mean that the structures are absent.
        ending: file ending of the merged dataset; None takes that of the first dataset.
        copy: copy images instead of linking them.
    """

    rename: Sequence[str] = ()
    contains: Sequence[str] = ()
    no_contains: Sequence[str] = ()
    prefer: Sequence[str] = ()
    patients: str | None = None
    reorient: bool = False
    accept_intensities: bool = False
    accept_empty: bool = False
    ending: str | None = None
    copy: bool = False


def merge(datasets: Sequence[str], output: str, options: MergeOptions | None = None) -> None:
    """Merges datasets of nnUNet_raw into a new one there; everything is verified before anything is written.

    Args:
        datasets: IDs or names of two datasets or more.
        output: name of the new one, 'Dataset111_Abdomen'.
        options: answers to what files cannot say.

    Raises:
        MutualError: what does not fit together, with the option or edit that mends it; no dataset is written then.
    """
    options = options or MergeOptions()
    sources = load_sources(datasets, options.rename)
    folder = free_place(output)
    target = agree(sources, options.ending, reorient=options.reorient)
    traps.refuse_shared_patients(sources, options.patients)
    contains = decide_contains(sources, options.contains, options.no_contains, is_regions=target.is_regions)
    preferred = _preferred(options.prefer, sources)
    reader_of = readers(sources, target.ending, reorient=options.reorient)
    scans, problems = scan(sources, reader_of)
    notes = traps.refuse_broken(problems)
    turn = traps.must_reorient(scans, target.ending, reorient=options.reorient)
    print(traps.intensity_table(scans, target.channels), end="\n\n")
    notes += traps.refuse_intensities(scans, target.channels, accepted=options.accept_intensities)
    traps.refuse_empty(scans, accepted=options.accept_empty)
    cases = merged_cases(group_equal(scans))
    dataset_json = merged_dataset_json(
        output,
        sources,
        cases,
        target,
        contains,
        same_patients=options.patients == "same",
        reader=REORIENT if turn else _common_reader(sources, target),
    )
    table = AnnotationTable.from_dataset_json(dataset_json)
    table.require(case.key for case in cases if case.labelled)
    views = {one: view_of(one, table, target) for case in cases if case.labelled for one in case.group}
    contradictions = _contradictions(cases, views, preferred, reader_of)
    _refuse_contradictions(contradictions, _report_path(folder))
    write_dataset(folder, dataset_json, cases, views, target, preferred, reader_of, contradictions, copy=options.copy)
    _report_path(folder).unlink(missing_ok=True)  # of an earlier attempt; the new one lies in the dataset
    _report(folder, table, cases, notes + similar_labels(sources) + traps.same_names(scans), contradictions)
    for warning in traps.without_table(scans):
        print(f"\n{warning}, then remove {folder} and merge again")
    print(f"\nNext:  nnunet_mutual check {folder.name}")


def _preferred(names: Sequence[str], sources: Sequence[MergeSource]) -> list[MergeSource]:
    by_name = {source.name: source for source in sources}
    short = {source.name: source.short for source in sources}
    return [by_name[dataset_named("--prefer", name, list(by_name), short)] for name in names]


def _common_reader(sources: Sequence[MergeSource], target: Target) -> str | None:
    """Returns the reader that all datasets name, if they agree and need no conversion."""
    named = {source.dataset_json.get("overwrite_image_reader_writer") for source in sources}
    endings = {source.dataset_json["file_ending"] for source in sources}
    only = named.pop() if len(named) == 1 and endings == {target.ending} else None
    return only if only not in ("None", REORIENT) else None


def _contradictions(
    cases: Sequence[MergedCase],
    views: Mapping[Scan, View],
    preferred: Sequence[MergeSource],
    reader_of: Mapping[MergeSource, BaseReaderWriter],
) -> list[Contradiction]:
    found = []
    twice = [case for case in cases if case.labelled and len(case.group) > 1]
    for case in tqdm(twice, desc="comparing drawings", unit="case", file=sys.stderr, leave=False, disable=not twice):
        refuse_pseudo(case.group)
        found += combine(case.group, views, preferred, reader_of)[2]
    return found


def _refuse_contradictions(found: Sequence[Contradiction], report: Path) -> None:
    """Lists contradictions that nobody decided in a CSV beside the place of the new dataset, and stops.

    Raises:
        MutualError: with the numbers and the place of the list.
    """
    undecided = [one for one in found if one.kept is None]
    if not undecided:
        return
    try:
        write_contradictions(report, found)
        where = f"all are listed in {report}"
    except OSError as error:
        where = f"the list could not be written to {report} ({error.strerror or error})"
    worst = max(undecided, key=lambda one: one.voxels)
    pairs = " and ".join(f"{one} says {said}" for one, said in zip(worst.group, worst.drawn, strict=True))
    raise MutualError(
        f"{len({one.group[0] for one in undecided})} image(s) that occur twice were drawn differently, "
        f"{sum(one.voxels for one in undecided)} voxel(s) in all; most at {worst.place}, where {pairs} "
        f"({worst.voxels} voxel(s)); {where}; correct the label maps, remove one of the two cases, or say with "
        "--prefer DATASET whose drawing counts"
    )


def _report_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_{CONTRADICTIONS}")


def _report(
    folder: Path,
    table: AnnotationTable,
    cases: Sequence[MergedCase],
    notes: Sequence[str],
    contradictions: Sequence[Contradiction],
) -> None:
    labelled = [case for case in cases if case.labelled]
    twice = sum(len(case.group) > 1 for case in labelled)
    dropped = sum(len(case.dropped) for case in cases)
    entries = [table.case(case.key) for case in labelled]
    print(f"{folder.name}: {len(labelled)} training cases, {len(cases) - len(labelled)} unlabelled, in {folder}")
    if twice:
        print(f"{twice} image(s) were in several datasets; each became one case with all that was drawn in it")
    if dropped:
        print(f"{dropped} unlabelled image(s) are copies of another one and were left out")
    if contradictions:
        print(f"Contradicting drawings were decided by --prefer; they are listed in {folder / CONTRADICTIONS}")
    print(format_coverage(table, entries, coverage(table, entries, {case.key: case.present for case in labelled})))
    if notes:
        print(f"\nPlease look at (may be right): {len(notes)}")
        print("\n".join(f"  {note}" for note in notes))
