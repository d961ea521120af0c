"""Sources and cases of an annotation table: who drew what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunet_mutual.annotation.schema import (
    known_keys,
    mapping,
    names_of,
)
from nnunet_mutual.disk.names import safe_name, safe_text
from nnunet_mutual.errors import MutualError, meant

_SOURCE_KEYS = ("annotated", "incomplete", "contains")
_CASE_KEYS = ("source", "annotated", "incomplete", "pseudo", "missing", "patient", "outlined")
_OUTLINE_KEYS = ("by", "weight")
_DRAWN = ("annotated", "incomplete")


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


def source_of(name: str, entry: Any, labels: tuple[str, ...]) -> Source:
    """Returns a source as dataset.json describes it."""
    place = f'source "{safe_text(name, "source of dataset.json")}"'
    entry = mapping(entry, place)
    known_keys(entry, _SOURCE_KEYS, place)
    if "annotated" not in entry:
        raise MutualError(
            f'{place} of dataset.json has no "annotated"; '
            "list the labels that were drawn there (an empty list is allowed)"
        )
    contains = mapping(entry.get("contains", {}), f"contains of {place}")
    names_of(list(contains), labels, f"contains of {place}", "label")
    inner = {
        outer: names_of(inside, labels, f'contains "{outer}" of {place}', "label") for outer, inside in contains.items()
    }
    annotated, incomplete = (names_of(entry.get(k, []), labels, f"{k} of {place}", "label") for k in _DRAWN)
    _require_apart(incomplete, {"annotated": annotated}, place)
    source = Source(name, annotated, inner, incomplete)
    for outer, inside in closure(inner).items():
        if outer in inside:
            raise MutualError(
                f'contains of {place} of dataset.json says that "{outer}" contains itself, directly or through others; '
                "remove one of the entries"
            )
    return source


def closure(direct: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
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


def case_of(
    key: str, entry: Any, sources: Mapping[str, Source], labels: tuple[str, ...], channels: tuple[str, ...]
) -> Case:
    """Returns a case as dataset.json describes it."""
    place = f'case "{safe_name(key, "case of dataset.json")}"'
    entry = mapping(entry, place)
    known_keys(entry, _CASE_KEYS, place)
    source = entry.get("source")
    if not isinstance(source, str) or source not in sources:
        raise MutualError(
            f"{place} of dataset.json has the source {source!r}{meant(str(source), sources)}; "
            f"declared sources: {', '.join(sources)}"
        )
    patient = entry.get("patient")
    if patient is not None and not isinstance(patient, str):
        raise MutualError(f'"patient" of {place} of dataset.json must be text, found {patient!r}; put it in quotes')
    if patient is not None and not patient.strip():
        raise MutualError(f'"patient" of {place} of dataset.json is empty; name the patient, or leave the entry out')
    if patient is not None:
        safe_text(patient, f"patient of {place} of dataset.json")
    pseudo = names_of(entry.get("pseudo", []), labels, f"pseudo of {place}", "label")
    own = {k: names_of(entry[k], labels, f"{k} of {place}", "label") for k in _DRAWN if k in entry}
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
        missing=names_of(entry.get("missing", []), channels, f"missing of {place}", "channel"),
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


def _outlines(entries: Any, annotated: frozenset[str], place: str) -> tuple[Outline, ...]:
    entries = mapping(entries, f"outlined of {place}")
    names_of(list(entries), annotated, f"outlined of {place}", "annotated label")
    found = []
    for label in sorted(entries):
        entry, where = mapping(entries[label], f'outlined "{label}" of {place}'), f'outlined "{label}" of {place}'
        known_keys(entry, _OUTLINE_KEYS, where)
        by, weight = entry.get("by", ""), entry.get("weight", 1)
        if not isinstance(by, str):
            raise MutualError(f'"by" of {where} of dataset.json must be text, found {by!r}; put it in quotes')
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1:
            raise MutualError(
                f'"weight" of {where} of dataset.json must be a number above 0 and at most 1, found {weight!r}'
            )
        found.append(Outline(label, safe_text(by, f"{where} of dataset.json"), float(weight)))
    return tuple(found)
