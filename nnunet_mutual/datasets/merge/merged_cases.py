"""The cases of the merged dataset and its dataset.json with the annotation table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.entries import drawn_entry, ordered, outlined_entry
from nnunet_mutual.annotation.table import VERSION, AnnotationTable
from nnunet_mutual.datasets.merge.agreement import Target, canonical_channel
from nnunet_mutual.datasets.merge.readings import PlainView, RegionView, View
from nnunet_mutual.datasets.merge.scan import Scan
from nnunet_mutual.datasets.merge.sources import MergeSource
from nnunet_mutual.datasets.merge.traps import shared_patients
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import BLOCK

_ABOUT = ("name", "description", "reference", "licence", "license", "release")


@dataclass(frozen=True)
class MergedCase:
    """One case of the merged dataset; ``group`` holds the scans that became it (images of the first are linked)."""

    key: str
    group: tuple[Scan, ...]
    dropped: tuple[Scan, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether it lies in imagesTr."""
        return self.group[0].labelled

    @property
    def present(self) -> frozenset[str]:
        """Labels that have voxels in one of its label maps."""
        return frozenset[str]().union(*(scan.present for scan in self.group))


def merged_cases(groups: Iterable[tuple[Scan, ...]]) -> list[MergedCase]:
    """Turns groups of equal images into cases; an unlabelled copy of a labelled image is dropped.

    Raises:
        MutualError: two cases of one dataset would get the same name.
    """
    cases: dict[str, MergedCase] = {}
    for group in groups:
        labelled = tuple(scan for scan in group if scan.labelled)
        members = labelled or group[:1]
        key = members[0].new_key
        if key in cases:
            raise MutualError(
                f"{members[0].source.name} has the case {members[0].key} in imagesTr and, with another image, in "
                "imagesUn; rename one of them"
            )
        cases[key] = MergedCase(key, members, tuple(scan for scan in group if scan not in members))
    return list(cases.values())


def merged_dataset_json(
    name: str,
    sources: Sequence[MergeSource],
    cases: Sequence[MergedCase],
    target: Target,
    contains: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    same_patients: bool,
    reader: str | None,
) -> dict[str, Any]:
    """Returns the content of the merged dataset.json.

    Args:
        name: of the merged dataset.
        sources: the datasets.
        cases: from :func:`merged_cases`.
        target: labels, channels, ending.
        contains: by source of the merged dataset, then by label.
        same_patients: patients of one name in two datasets are one person.
        reader: value of "overwrite_image_reader_writer", if nnU-Net shall not choose.

    Raises:
        MutualError: entries of the tables that cannot both be kept.
    """
    block: dict[str, Any] = {"version": VERSION, "sources": {}, "cases": {}}
    for dataset in sources:
        for source in dataset.table.sources:
            annotated, incomplete = dataset.drawn(source)
            entry: dict[str, Any] = {"annotated": ordered(annotated, target.foreground)}
            if incomplete:
                entry["incomplete"] = ordered(incomplete, target.foreground)
            new = dataset.new_source(source)
            if contains.get(new):
                entry["contains"] = {outer: ordered(inner, target.foreground) for outer, inner in contains[new].items()}
            block["sources"][new] = entry
    frame = {
        "channel_names": {str(number): channel for number, channel in enumerate(target.channels)},
        "labels": dict(target.labels),
        **target.more,
        "numTraining": sum(case.labelled for case in cases),
        "file_ending": target.ending,
        **({"overwrite_image_reader_writer": reader} if reader else {}),
        "name": name,
        "merged_from": {source.name: _about(source) for source in sources},
    }
    block |= _block_extras(sources, target)
    try:
        AnnotationTable.from_dataset_json(frame | {BLOCK: block})  # a circle is found before cases need the table
    except MutualError as error:
        raise MutualError(f"the tables and the options --contains do not fit together: {error}") from None
    patients = _patients(sources, cases, same=same_patients)
    for case in cases:
        own = _source_of(case, block, target)
        if own is not None:
            block["cases"][case.key] = _entry(case, own, block, target, patients)
    return frame | {BLOCK: block}


def view_of(scan: Scan, table: AnnotationTable, target: Target) -> View:
    """Returns how a label map is to be understood.

    Args:
        scan: of a labelled case.
        table: the merged table.
        target: the merged labels.
    """
    case = scan.source.case(scan.key)
    if target.is_regions:
        regions = {name: frozenset(values) for name, values in table.values.items()}
        ignore = scan.source.table.ignore, target.labels.get("ignore")
        return RegionView(case.annotated, regions, *ignore, case.incomplete)
    return PlainView(
        case.annotated,
        table.contained(Case(case.key, scan.source.new_source(case.source), case.annotated)),
        table.partners,
        scan.source.meaning,
        target.labels,
    )


def _about(source: MergeSource) -> dict[str, Any]:
    return {key: source.dataset_json[key] for key in _ABOUT if isinstance(source.dataset_json.get(key), str)}


def _source_of(case: MergedCase, block: dict[str, Any], target: Target) -> str | None:
    """Returns the source of a case; adds 'A+B' to the block where neither source says all that A and B contain."""
    scans = case.group
    if not case.labelled:
        return _unlabelled_source(scans[0])
    own = [scan.source.case(scan.key) for scan in scans]
    names = list(dict.fromkeys(s.source.new_source(c.source) for s, c in zip(scans, own, strict=True)))
    if len(names) == 1:
        return names[0]
    annotated, drawn = (
        frozenset[str]().union(*sets) for sets in zip(*((c.annotated, c.drawn) for c in own), strict=True)
    )
    needed = {
        (outer, inner)
        for name in names
        for outer, inside in block["sources"][name].get("contains", {}).items()
        for inner in inside
        if outer in drawn and inner not in annotated
    }
    for name in names:
        said = block["sources"][name].get("contains", {})
        if all(inner in said.get(outer, ()) for outer, inner in needed):
            return name
    both = "+".join(names)
    if both not in block["sources"]:
        entry: dict[str, Any] = {"annotated": [], "contains": {}}
        for name in names:
            source = block["sources"][name]
            entry["annotated"] = ordered({*entry["annotated"], *source["annotated"]}, target.foreground)
            for outer, inside in source.get("contains", {}).items():
                entry["contains"][outer] = ordered({*entry["contains"].get(outer, ()), *inside}, target.foreground)
        block["sources"][both] = entry
    return both


def _unlabelled_source(scan: Scan) -> str | None:
    """Source of a case in imagesUn: from the table, or the only one there is."""
    table = scan.source.table
    if scan.key in table.cases:
        return scan.source.new_source(table.cases[scan.key].source)
    return scan.source.new_source(next(iter(table.sources))) if len(table.sources) == 1 else None


def _entry(
    case: MergedCase, source: str, block: Mapping[str, Any], target: Target, patients: Mapping[Scan, str]
) -> dict[str, Any]:
    entry: dict[str, Any] = {"source": source}
    missing: set[str] = set()
    for scan in case.group:
        listed = scan.source.table.cases.get(scan.key)
        missing |= {canonical_channel(name, target.channels) for name in (listed.missing if listed else ())}
    if case.labelled:
        own = [scan.source.case(scan.key) for scan in case.group]
        annotated = frozenset[str]().union(*(c.annotated for c in own))
        pseudo = frozenset[str]().union(*(c.pseudo for c in own))
        incomplete = frozenset[str]().union(*(c.incomplete for c in own)) - annotated - pseudo
        entry |= drawn_entry(block["sources"][source], annotated, incomplete, pseudo, target.foreground)
        entry |= outlined_entry(one for c in own for one in c.outlined if one.label in annotated)
    if case.group[0] in patients:
        entry["patient"] = patients[case.group[0]]
    if missing:
        entry["missing"] = [channel for channel in target.channels if channel in missing]
    return entry


def _patients(sources: Sequence[MergeSource], cases: Sequence[MergedCase], *, same: bool) -> dict[Scan, str]:
    """Returns the patient of each scan that is kept; one image in two datasets makes two patient names one."""
    shared = set() if same else set(shared_patients(sources))
    names: dict[Scan, str] = {}
    for case in cases:
        for scan in (*case.group, *case.dropped):
            listed = scan.source.table.cases.get(scan.key)
            if listed is not None and listed.patient is not None:
                prefix = f"{scan.source.short}_" if listed.patient in shared else ""
                names[scan] = prefix + listed.patient
    alias: dict[str, str] = {}

    def final(name: str) -> str:
        while name in alias:
            name = alias[name]
        return name

    for case in cases:
        found = [final(names[scan]) for scan in (*case.group, *case.dropped) if scan in names]
        for other in found[1:]:
            if final(other) != final(found[0]):
                alias[final(other)] = final(found[0])
        if found:
            names[case.group[0]] = found[0]
    return {scan: final(name) for scan, name in names.items()}


def _block_extras(sources: Sequence[MergeSource], target: Target) -> dict[str, Any]:
    singles = {source.renamed[label] for source in sources for label in source.table.singles}
    pairs = {
        frozenset(source.renamed[label] for label in pair) for source in sources for pair in source.table.may_overlap
    }
    groups: dict[str, list[str]] = {}
    for source in sources:
        for name, members in source.table.modality_groups.items():
            own = [canonical_channel(member, target.channels) for member in members]
            if sorted(groups.setdefault(name, own)) != sorted(own):
                raise MutualError(
                    f"the modality group {name!r} is {groups[name]} in one dataset and {own} in {source.name}; make "
                    'them equal in the "modality_groups" of both, or rename one'
                )
    extras: dict[str, Any] = {}
    if singles:
        extras["labels"] = {label: {"single": True} for label in ordered(singles, target.foreground)}
    if pairs := {pair for pair in pairs if len(pair) == 2}:
        extras["may_overlap"] = sorted(ordered(pair, target.foreground) for pair in pairs)
    if groups:
        extras["modality_groups"] = groups
    return extras
