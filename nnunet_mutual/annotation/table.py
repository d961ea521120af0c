"""The annotation table: what each case says about each label.

It is the ``"mutual"`` block of ``dataset.json`` (schema: docs/data.md). Labels and channels are given by name. The
schema is strict, because a misspelt key that is silently ignored would train a network on a guess.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nnunet_mutual.annotation.cases import Case, Outline, Source, case_of, closure, source_of
from nnunet_mutual.annotation.schema import (
    channels_of,
    group_name,
    integers,
    known_keys,
    mapping,
    names_of,
    require_different,
    require_ignore,
)
from nnunet_mutual.disk.names import safe_name, safe_text
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import BLOCK

VERSION = 1
_BLOCK_KEYS = ("version", "sources", "cases", "labels", "may_overlap", "modality_groups")
_LABEL_KEYS = ("single",)


@dataclass(frozen=True)
class AnnotationTable:
    """Look-up of annotated sets for one dataset; make it with :meth:`from_dataset_json`.

    Attributes:
        labels: foreground label names in the order of the network's foreground outputs: plain labels by their integer,
            regions as dataset.json lists them.
        values: the integers of each label in the label maps (several for a region).
        is_regions: whether labels are regions (sigmoid outputs).
        declared: whether dataset.json has a block; without one every case is fully annotated and of one source.
        ignore: the integer of nnU-Net's ignore label, None without one.
        singles: labels of which a body has one connected piece.
        may_overlap: pairs of labels for which "this voxel is b" says nothing about a.
    """

    labels: tuple[str, ...]
    values: Mapping[str, tuple[int, ...]]
    channels: tuple[str, ...]
    is_regions: bool
    declared: bool
    sources: Mapping[str, Source]
    cases: Mapping[str, Case] = field(repr=False)
    ignore: int | None = None
    singles: frozenset[str] = frozenset()
    may_overlap: frozenset[frozenset[str]] = frozenset()
    modality_groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any]) -> AnnotationTable:
        """Reads and verifies the table, and the names of dataset.json that become names of files.

        Args:
            dataset_json: the content of a dataset.json.

        Raises:
            MutualError: a wrong, unknown or missing entry, with the place and the fix.
        """
        if "file_ending" in dataset_json:
            safe_name(dataset_json["file_ending"], '"file_ending" of dataset.json')
        raw_labels = mapping(dataset_json.get("labels"), '"labels"')
        for name in raw_labels:
            safe_text(name, "label of dataset.json")
        values = {n: integers(v) for n, v in raw_labels.items() if n not in ("background", "ignore")}
        labels = tuple(name for name, integers in values.items() if set(integers) != {0})
        # nnU-Net's own rule: one list of two or more integers makes it a region dataset.
        is_regions = any(isinstance(v, (list, tuple)) and len(v) > 1 for v in raw_labels.values())
        if not is_regions:
            labels = tuple(sorted(labels, key=values.__getitem__))
            require_different(labels, values)
        require_ignore(raw_labels.get("ignore"))
        channels = channels_of(dataset_json.get("channel_names", dataset_json.get("modality")))
        common: dict[str, Any] = {
            "labels": labels,
            "values": {name: values[name] for name in labels},
            "channels": channels,
            "is_regions": is_regions,
            "ignore": raw_labels.get("ignore"),
        }
        if BLOCK not in dataset_json:
            everything = Source("dataset", frozenset(labels))
            return cls(declared=False, sources={everything.name: everything}, cases={}, **common)
        block = mapping(dataset_json[BLOCK], f'"{BLOCK}"')
        known_keys(block, _BLOCK_KEYS, f'"{BLOCK}"')
        version = block.get("version")
        if type(version) is not int or version != VERSION:
            raise MutualError(
                f'"{BLOCK}" of dataset.json has version {version!r}, this release reads version {VERSION}; '
                f'set "version": {VERSION} or install the release that wrote it'
            )
        sources = {n: source_of(n, s, labels) for n, s in mapping(block.get("sources"), f'"{BLOCK}.sources"').items()}
        cases = {
            key: case_of(key, entry, sources, labels, channels)
            for key, entry in mapping(block.get("cases"), f'"{BLOCK}.cases"').items()
        }
        overlaps = _overlaps(block.get("may_overlap", []), labels)
        if is_regions and (overlaps or any(s.contains for s in sources.values())):
            raise MutualError(
                'the labels are regions, so their relation is read from the integers in "labels"; '
                f'remove "contains" and "may_overlap" from "{BLOCK}" in dataset.json'
            )
        return cls(
            declared=True,
            sources=sources,
            cases=cases,
            singles=_singles(block.get("labels", {}), labels),
            may_overlap=overlaps,
            modality_groups=_groups(block.get("modality_groups", {}), channels),
            **common,
        )

    def case(self, key: str) -> Case:
        """Returns the entry of a case.

        Raises:
            MutualError: the table is declared and the case is not in it.
        """
        if not self.declared:
            return Case(key, "dataset", frozenset(self.labels))
        if key not in self.cases:
            self.require([key])
        return self.cases[key]

    def require(self, keys: Iterable[str]) -> None:
        """Verifies that every case is listed; an unlisted case is an error, not full supervision.

        Raises:
            MutualError: names the cases that are missing.
        """
        absent = sorted(set(keys) - set(self.cases)) if self.declared else []
        if absent:
            shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
            raise MutualError(
                f'{len(absent)} case(s) are not listed in "{BLOCK}" of dataset.json: {shown}; '
                'add each with its source (for an unlabelled case "annotated": []) or run nnunet_mutual annotate again'
            )

    def require_annotated(self, training: Iterable[str], fold: int | str) -> None:
        """Verifies that every label has a training case that annotates it completely.

        Raises:
            MutualError: names the labels that nothing would teach.
        """
        cases = [self.case(key) for key in training]
        absent = [label for label in self.labels if not any(label in case.annotated for case in cases)]
        if absent:
            raise MutualError(
                f"no training case of fold {fold} annotates {', '.join(absent)}{drawn_in_part(cases, absent)}; remove "
                "the label from dataset.json, correct the annotation table, or use another split"
            )

    @cached_property
    def patients(self) -> Mapping[str, str]:
        """Case -> patient, of the cases of which one is named; never the name of a case."""
        return {key: f"patient {case.patient}" for key, case in self.cases.items() if case.patient}

    @property
    def outlines(self) -> list[tuple[Outline, int]]:
        """Outlines that are of a tool, alike ones once, each with its number of cases; in the order of the labels."""
        number = Counter(one for case in self.cases.values() for one in case.outlined)
        return sorted(number.items(), key=lambda item: (self.labels.index(item[0].label), item[0].by, -item[0].weight))

    def contained(self, case: Case) -> dict[str, frozenset[str]]:
        """Returns, per label, all that its drawn area includes in the source of the case, at any depth."""
        return self.inside(case.source)

    def inside(self, source: str) -> dict[str, frozenset[str]]:
        """Returns the same of a source."""
        return closure(self.sources[source].contains)

    def beneath(self, case: Case, label: str) -> frozenset[str]:
        """Returns the drawn labels that may lie at voxels of a label that nobody drew in the case (but a model).

        A label map holds one label per voxel: who wrote a model's tumour into a drawn liver has hidden the liver there.
        """
        contained = self.contained(case)
        return frozenset(b for b in case.drawn if label in contained.get(b, ())) | (
            self.overlap_partners(label) & case.drawn
        )

    @cached_property
    def partners(self) -> Mapping[str, frozenset[str]]:
        """:meth:`overlap_partners` of every label."""
        return {label: self.overlap_partners(label) for label in self.labels}

    def ever_contains(self, outer: str, inner: str) -> bool:
        """Whether the drawn area of a label includes another one in any source."""
        return any(inner in closure(source.contains).get(outer, ()) for source in self.sources.values())

    def exclusive(self, a: str, b: str) -> bool:
        """Whether no voxel can be drawn as one label and, by somebody else, as the other."""
        if self.is_regions:
            return not set(self.values[a]) & set(self.values[b])
        nested = self.ever_contains(a, b) or self.ever_contains(b, a)
        return not nested and b not in self.overlap_partners(a)

    def overlap_partners(self, label: str) -> frozenset[str]:
        """Returns the labels declared in ``may_overlap`` together with this one."""
        return frozenset(other for pair in self.may_overlap if label in pair for other in pair if other != label)


def drawn_in_part(cases: Iterable[Case], labels: Iterable[str]) -> str:
    """Says why drawing a part is not enough to learn from, where some of these labels are drawn so; else nothing."""
    number = sum(not case.incomplete.isdisjoint(labels) for case in cases)
    why = "completely: where only a part is drawn, a network that finds it everywhere is never wrong"
    return f" {why} ({number} case(s))" if number else ""


def table_fingerprint(dataset_json: Mapping[str, Any]) -> str:
    """Returns the block as canonical JSON text ('' without a block), to compare raw and preprocessed tables.

    The order of modality groups counts, since it is that of the stored channels and of the networks.
    """
    if BLOCK not in dataset_json:
        return ""
    block = dataset_json[BLOCK]
    groups = block.get("modality_groups") if isinstance(block, Mapping) else None
    order = json.dumps([*groups]) if isinstance(groups, Mapping) else ""
    return json.dumps(block, sort_keys=True) + order


def _singles(entries: Any, labels: tuple[str, ...]) -> frozenset[str]:
    entries = mapping(entries, f'"{BLOCK}.labels"')
    names_of(list(entries), labels, f'"{BLOCK}.labels"', "label")
    for name, entry in entries.items():
        place = f'"{BLOCK}.labels.{name}"'
        known_keys(mapping(entry, place), _LABEL_KEYS, place)
        if not isinstance(entry.get("single", False), bool):
            raise MutualError(
                f'"single" of label "{name}" of dataset.json must be true or false, found {entry["single"]!r}'
            )
    return frozenset(name for name, entry in entries.items() if entry.get("single", False))


def _overlaps(pairs: Any, labels: tuple[str, ...]) -> frozenset[frozenset[str]]:
    if not isinstance(pairs, (list, tuple)):
        raise MutualError(f'"may_overlap" of dataset.json must be a list of pairs of labels, found {pairs!r}')
    found = set()
    for pair in pairs:
        names = names_of(pair, labels, '"may_overlap"', "label")
        if len(names) != 2:
            raise MutualError(f'"may_overlap" of dataset.json must hold pairs of two labels, found {pair!r}')
        found.add(names)
    return frozenset(found)


def _groups(groups: Any, channels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, members in mapping(groups, f'"{BLOCK}.modality_groups"').items():
        if not names_of(members, channels, f'modality group "{name}"', "channel"):
            raise MutualError(
                f'modality group "{name}" of dataset.json is empty; list its channels: {", ".join(channels)}'
            )
        found[group_name(name)] = tuple(members)
    return found
