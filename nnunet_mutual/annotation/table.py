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

from nnunet_mutual.disk.names import safe_name, safe_text
from nnunet_mutual.errors import MutualError, meant, shown
from nnunet_mutual.settings import BLOCK

VERSION = 1
_BLOCK_KEYS = ("version", "sources", "cases", "labels", "may_overlap", "modality_groups")
_SOURCE_KEYS = ("annotated", "incomplete", "contains")
_CASE_KEYS = ("source", "annotated", "incomplete", "pseudo", "missing", "patient", "outlined")
_OUTLINE_KEYS = ("by", "weight")
_DRAWN = ("annotated", "incomplete")
_LABEL_KEYS = ("single",)


@dataclass(frozen=True)
class Source:
    """A group of cases that were annotated by the same rules, usually one hospital or one public dataset."""

    name: str
    annotated: frozenset[str]
    contains: Mapping[str, frozenset[str]] = field(default_factory=dict)
    incomplete: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outline:
    """Who outlined an annotated label that a person accepted, and how much trainings believe it.

    Attributes:
        label: the label.
        by: the tool, with its version if that is known; '' if unknown.
        weight: in (0, 1], of its voxels and of its Dice in the loss.
    """

    label: str
    by: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Case:
    """One image: its source and the labels that somebody looked for and drew wherever they are present.

    Attributes:
        pseudo: labels that a model drew and nobody has looked at; they are never among ``annotated``, so that their
            voxels say nothing.
        incomplete: labels of which somebody drew a part, such as some of many lesions: what is drawn is right, whether
            there is more is unknown. They are never among ``annotated``.
        outlined: annotated labels whose outlines are of a tool and not of a person's hand.
    """

    key: str
    source: str
    annotated: frozenset[str]
    patient: str | None = None
    pseudo: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    incomplete: frozenset[str] = frozenset()
    outlined: tuple[Outline, ...] = ()

    def weight(self, label: str) -> float:
        """Returns how much trainings believe an annotated label."""
        return dict(self.outlined_weights).get(label, 1.0)

    @property
    def outlined_weights(self) -> tuple[tuple[str, float], ...]:
        """Labels and weights other than 1."""
        return tuple((one.label, one.weight) for one in self.outlined if one.weight != 1)

    @property
    def drawn(self) -> frozenset[str]:
        """Labels whose voxels somebody drew, all of them or a part."""
        return self.annotated | self.incomplete


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
        raw_labels = _mapping(dataset_json.get("labels"), '"labels"')
        for name in raw_labels:
            safe_text(name, "label of dataset.json")
        values = {n: _integers(v) for n, v in raw_labels.items() if n not in ("background", "ignore")}
        labels = tuple(name for name, integers in values.items() if set(integers) != {0})
        # nnU-Net's own rule: one list of two or more integers makes it a region dataset.
        is_regions = any(isinstance(v, (list, tuple)) and len(v) > 1 for v in raw_labels.values())
        if not is_regions:
            labels = tuple(sorted(labels, key=values.__getitem__))
            _require_different(labels, values)
        _require_ignore(raw_labels.get("ignore"))
        channels = _channels(dataset_json.get("channel_names", dataset_json.get("modality")))
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
        block = _mapping(dataset_json[BLOCK], f'"{BLOCK}"')
        _known_keys(block, _BLOCK_KEYS, f'"{BLOCK}"')
        version = block.get("version")
        if type(version) is not int or version != VERSION:
            raise MutualError(
                f'"{BLOCK}" of dataset.json has version {version!r}, this release reads version {VERSION}; '
                f'set "version": {VERSION} or install the release that wrote it'
            )
        sources = {n: _source(n, s, labels) for n, s in _mapping(block.get("sources"), f'"{BLOCK}.sources"').items()}
        cases = {
            key: _case(key, entry, sources, labels, channels)
            for key, entry in _mapping(block.get("cases"), f'"{BLOCK}.cases"').items()
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
        return _closure(self.sources[source].contains)

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
        return any(inner in _closure(source.contains).get(outer, ()) for source in self.sources.values())

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
    """Returns the block as canonical JSON text ('' without a block), to compare raw and preprocessed tables."""
    return json.dumps(dataset_json[BLOCK], sort_keys=True) if BLOCK in dataset_json else ""


def _require_different(labels: Iterable[str], values: Mapping[str, tuple[int, ...]]) -> None:
    first: dict[tuple[int, ...], str] = {}
    for label in labels:
        if (other := first.setdefault(values[label], label)) != label:
            raise MutualError(
                f"the labels {other} and {label} of dataset.json have the same value {values[label][0]}, so no voxel "
                "says which of them it is; give each a value of its own, or remove one of the names"
            )


def _known_keys(entry: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in entry:
        if key not in known:
            raise MutualError(
                f"unknown key {key!r} in {place} of dataset.json{meant(key, known)}; known: {', '.join(known)}"
            )


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        found = "nothing" if value is None else type(value).__name__
        raise MutualError(f"{place} of dataset.json must be an object {{name: ...}}, found {found}; see docs/data.md")
    return value


def _names(value: Any, known: Iterable[str], place: str, what: str) -> frozenset[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise MutualError(f"{place} of dataset.json must be a list of {what} names, found {value!r}")
    known = tuple(known)
    for name in value:
        if name not in known:
            raise MutualError(
                f"unknown {what} {name!r} in {place} of dataset.json{meant(name, known)}; known: {', '.join(known)}"
            )
    if len(set(value)) != len(value):
        raise MutualError(f"{place} of dataset.json lists a {what} twice: {value}; keep one")
    return frozenset(value)


def _integers(value: Any) -> tuple[int, ...]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    # nnU-Net takes "1" for 1 as well.
    if not items or not all(type(item) is int or (isinstance(item, str) and item.isdecimal()) for item in items):
        raise MutualError(f'"labels" of dataset.json holds {value!r}; expected an integer or a list of integers')
    return tuple(int(item) for item in items)


def _require_ignore(value: Any) -> None:
    if value is not None and type(value) is not int:
        raise MutualError(f'"ignore" in "labels" of dataset.json must be a whole number, found {value!r}')


def _channels(entries: Any) -> tuple[str, ...]:
    """Names of the channels, whose keys are their numbers in order."""
    named = _mapping(entries, '"channel_names"')
    names = tuple(named.values())
    if not names or list(map(str, named)) != list(map(str, range(len(names)))) or not all(map(_is_name, names)):
        raise MutualError(
            '"channel_names" of dataset.json must be {"0": name, "1": name, ...} in this order, found '
            f"{shown(dict(named))}"
        )
    return tuple(safe_text(name, "channel of dataset.json") for name in names)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _source(name: str, entry: Any, labels: tuple[str, ...]) -> Source:
    place = f'source "{safe_text(name, "source of dataset.json")}"'
    entry = _mapping(entry, place)
    _known_keys(entry, _SOURCE_KEYS, place)
    if "annotated" not in entry:
        raise MutualError(
            f'{place} of dataset.json has no "annotated"; '
            "list the labels that were drawn there (an empty list is allowed)"
        )
    contains = _mapping(entry.get("contains", {}), f"contains of {place}")
    _names(list(contains), labels, f"contains of {place}", "label")
    inner = {
        outer: _names(inside, labels, f'contains "{outer}" of {place}', "label") for outer, inside in contains.items()
    }
    annotated, incomplete = (_names(entry.get(k, []), labels, f"{k} of {place}", "label") for k in _DRAWN)
    _require_apart(incomplete, {"annotated": annotated}, place)
    source = Source(name, annotated, inner, incomplete)
    for outer, inside in _closure(inner).items():
        if outer in inside:
            raise MutualError(
                f'contains of {place} of dataset.json says that "{outer}" contains itself, directly or through others; '
                "remove one of the entries"
            )
    return source


def _closure(direct: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Transitive closure of ``contains``."""
    closure: dict[str, frozenset[str]] = {}
    for label in direct:
        found: set[str] = set()
        pending = list(direct[label])
        while pending:
            inner = pending.pop()
            if inner not in found:
                found.add(inner)
                pending.extend(direct.get(inner, ()))
        closure[label] = frozenset(found)
    return closure


def _case(
    key: str, entry: Any, sources: Mapping[str, Source], labels: tuple[str, ...], channels: tuple[str, ...]
) -> Case:
    place = f'case "{safe_name(key, "case of dataset.json")}"'
    entry = _mapping(entry, place)
    _known_keys(entry, _CASE_KEYS, place)
    source = entry.get("source")
    if not isinstance(source, str) or source not in sources:
        raise MutualError(
            f"{place} of dataset.json has the source {source!r}{meant(str(source), sources)}; "
            f"declared sources: {', '.join(sources)}"
        )
    patient = entry.get("patient")
    if patient is not None and not isinstance(patient, str):
        raise MutualError(f'"patient" of {place} of dataset.json must be text, found {patient!r}; put it in quotes')
    if patient is not None:
        safe_text(patient, f"patient of {place} of dataset.json")
    pseudo = _names(entry.get("pseudo", []), labels, f"pseudo of {place}", "label")
    own = {k: _names(entry[k], labels, f"{k} of {place}", "label") for k in _DRAWN if k in entry}
    complete, in_part = (own.get(key, frozenset()) for key in _DRAWN)
    _require_apart(in_part, {"annotated": complete, "pseudo": pseudo}, place)
    annotated = own.get("annotated", sources[source].annotated - in_part)
    incomplete = own.get("incomplete", sources[source].incomplete - complete)
    return Case(
        key=key,
        source=source,
        annotated=annotated - pseudo,
        patient=patient,
        pseudo=pseudo,
        missing=_names(entry.get("missing", []), channels, f"missing of {place}", "channel"),
        incomplete=incomplete - pseudo,
        outlined=_outlines(entry.get("outlined", {}), annotated - pseudo, place),
    )


def _require_apart(incomplete: frozenset[str], others: Mapping[str, frozenset[str]], place: str) -> None:
    for other, names in others.items():
        for name in sorted(incomplete & names):
            raise MutualError(
                f'{place} of dataset.json lists {name} under "incomplete" and under "{other}"; keep one: "incomplete" '
                "says that what is drawn of it is right and that there may be more"
            )


def outlined_entry(outlines: Iterable[Outline]) -> dict[str, Any]:
    """Returns the entry of a case that says who outlined its labels; none without outlines."""
    said = {
        one.label: {**({"by": one.by} if one.by else {}), **({"weight": one.weight} if one.weight != 1 else {})}
        for one in outlines
    }
    return {"outlined": said} if said else {}


def _outlines(entries: Any, annotated: frozenset[str], place: str) -> tuple[Outline, ...]:
    entries = _mapping(entries, f"outlined of {place}")
    _names(list(entries), annotated, f"outlined of {place}", "annotated label")
    found = []
    for label in sorted(entries):
        entry, where = _mapping(entries[label], f'outlined "{label}" of {place}'), f'outlined "{label}" of {place}'
        _known_keys(entry, _OUTLINE_KEYS, where)
        by, weight = entry.get("by", ""), entry.get("weight", 1)
        if not isinstance(by, str):
            raise MutualError(f'"by" of {where} of dataset.json must be text, found {by!r}; put it in quotes')
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1:
            raise MutualError(
                f'"weight" of {where} of dataset.json must be a number above 0 and at most 1, found {weight!r}'
            )
        found.append(Outline(label, safe_text(by, f"{where} of dataset.json"), float(weight)))
    return tuple(found)


def _singles(entries: Any, labels: tuple[str, ...]) -> frozenset[str]:
    entries = _mapping(entries, f'"{BLOCK}.labels"')
    _names(list(entries), labels, f'"{BLOCK}.labels"', "label")
    for name, entry in entries.items():
        place = f'"{BLOCK}.labels.{name}"'
        _known_keys(_mapping(entry, place), _LABEL_KEYS, place)
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
        names = _names(pair, labels, '"may_overlap"', "label")
        if len(names) != 2:
            raise MutualError(f'"may_overlap" of dataset.json must hold pairs of two labels, found {pair!r}')
        found.add(names)
    return frozenset(found)


def _groups(groups: Any, channels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, members in _mapping(groups, f'"{BLOCK}.modality_groups"').items():
        if not _names(members, channels, f'modality group "{name}"', "channel"):
            raise MutualError(
                f'modality group "{name}" of dataset.json is empty; list its channels: {", ".join(channels)}'
            )
        if name.split("_")[0] == "full":
            raise MutualError(
                f'modality group "{name}" of dataset.json has the name of a folder of nnU-Net\'s results, '
                "validation_full; choose another one"
            )
        found[safe_name(name, "modality group of dataset.json")] = tuple(members)
    return found
