"""What an annotation table said before, where the one that replaces it says nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.tables import Entry
from nnunet_mutual.datasets.tolerant import readable_table
from nnunet_mutual.disk.files import natural
from nnunet_mutual.errors import typed
from nnunet_mutual.settings import BLOCK

_KEPT = ("patient", "pseudo", "missing")
_OF_LABELS = ("annotated", "incomplete", "pseudo", "contains", "outlined")  # entries of sources and cases


def earlier_table(content: Mapping[str, Any]) -> AnnotationTable | None:
    """Returns what is right of the block that dataset.json holds, without labels and channels that it no longer has."""
    block = content.get(BLOCK)
    if block is None:
        return None
    plain = AnnotationTable.from_dataset_json({key: value for key, value in content.items() if key != BLOCK})
    known = frozenset(plain.labels), frozenset(plain.channels)
    return readable_table({**content, BLOCK: _of_known(block, *known)})[0]


def _of_known(block: Any, labels: frozenset[str], channels: frozenset[str]) -> Any:
    """Leaves other names out of sources and cases, whatever else these hold."""
    known = {**dict.fromkeys(_OF_LABELS, labels), "missing": channels}

    def kept(value: Any, names: frozenset[str]) -> Any:
        if isinstance(value, list):
            return [name for name in value if not isinstance(name, str) or name in names]
        if not isinstance(value, Mapping):
            return value
        return {
            key: kept(inner, names) if isinstance(inner, list) else inner
            for key, inner in value.items()
            if key in names
        }

    def entry(said: Any) -> Any:
        if not isinstance(said, Mapping):
            return said
        return {key: kept(value, known[key]) if key in known else value for key, value in said.items()}

    if not isinstance(block, Mapping):
        return block
    parts = {key: block[key] for key in ("sources", "cases") if isinstance(block.get(key), Mapping)}
    return {**block, **{key: {name: entry(said) for name, said in part.items()} for key, part in parts.items()}}


def completed(
    entries: Sequence[Entry], earlier: AnnotationTable | None, unlabelled: Collection[str]
) -> tuple[list[Entry], list[str]]:
    """Adds to a new table what only the earlier one says.

    Args:
        entries: of the new table.
        earlier: from :func:`earlier_table`.
        unlabelled: images in imagesUn/; a row about one of them stays where the new table has none.

    Returns:
        The entries, and a sentence for each thing that was kept.
    """
    if earlier is None:
        return list(entries), []
    result, kept = [], dict.fromkeys(_KEPT, 0)
    for entry in entries:
        before = earlier.cases.get(entry.case)
        for name in _KEPT if before is not None else ():
            value = getattr(before, name)
            if name == "pseudo" and value:
                value -= entry.drawn
            if value and name not in entry.says:
                entry = replace(entry, **{name: value})
                kept[name] += 1
        if before is not None:
            entry = replace(entry, outlined=tuple(one for one in before.outlined if one.label in entry.annotated))
        result.append(entry)
    silent = sorted((set(unlabelled) & set(earlier.cases)) - {entry.case for entry in entries}, key=natural)
    for case in map(earlier.cases.__getitem__, silent):
        result.append(Entry(case.key, frozenset(), case.source, case.patient, missing=case.missing))
    notes = [
        f"{name} of {number} case(s), for which the table has no column" for name, number in kept.items() if number
    ]
    if silent:
        notes.append(f"{len(silent)} image(s) of imagesUn, which the table does not list")
    return result, notes


def withdrawn(earlier: AnnotationTable | None, new: AnnotationTable) -> list[str]:
    """Returns "case: labels" of what the earlier table called drawn, as accept does, and the new one does not."""
    return _in_words({now.key: before.drawn - now.drawn for before, now in _both(earlier, new)})


def completed_since(earlier: AnnotationTable | None, new: AnnotationTable) -> list[str]:
    """Returns "case: labels" of what the earlier table called drawn in part and the new one calls annotated."""
    return _in_words({now.key: before.incomplete & now.annotated for before, now in _both(earlier, new)})


def _both(earlier: AnnotationTable | None, new: AnnotationTable) -> list[tuple[Case, Case]]:
    cases = {} if earlier is None else earlier.cases
    return [(case, new.cases[key]) for key, case in cases.items() if key in new.cases]


def _in_words(found: Mapping[str, frozenset[str]]) -> list[str]:
    return [f"{key}: {' and '.join(sorted(labels))}" for key, labels in found.items() if labels]


def dropped(earlier: AnnotationTable | None, new: AnnotationTable) -> list[str]:
    """Returns the options of annotate that would say again what the earlier table said and the new one does not."""
    if earlier is None:
        return []
    inside = {
        (source.name, outer, inner)
        for source in earlier.sources.values()
        if source.name in new.sources
        for outer, names in source.contains.items()
        for inner in names - new.inside(source.name).get(outer, frozenset())
    }
    options = [("--contains", f"{source}:{outer}={inner}") for source, outer, inner in sorted(inside)]
    options += [("--single", label) for label in sorted(earlier.singles - new.singles)]
    options += [("--may-overlap", ",".join(sorted(pair))) for pair in earlier.may_overlap - new.may_overlap]
    return [f"{option} {typed(value)}" for option, value in options]


def without_source(earlier: AnnotationTable | None, new: AnnotationTable) -> list[str]:
    """Returns "source: outer contains inner" of sources of the earlier table that the new one does not have."""
    gone = [] if earlier is None else [source for name, source in earlier.sources.items() if name not in new.sources]
    return [
        f"{source.name}: {outer} contains {' and '.join(sorted(inner))}"
        for source in gone
        for outer, inner in source.contains.items()
    ]
