"""What an annotation table said before, where the one that replaces it says nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnunet_mutual.annotation.table import AnnotationTable, Case
from nnunet_mutual.datasets.tables import Entry
from nnunet_mutual.datasets.tolerant import readable_table
from nnunet_mutual.disk.files import natural
from nnunet_mutual.settings import BLOCK

_KEPT = ("patient", "pseudo", "missing")


def earlier_table(content: Mapping[str, Any]) -> AnnotationTable | None:
    """Returns what is right of the block that dataset.json holds, None without one."""
    return readable_table(content)[0] if BLOCK in content else None


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
    """Returns "case: labels" of what the earlier table called annotated, as accept does, and the new one does not."""
    return _in_words({now.key: before.annotated - now.annotated for before, now in _both(earlier, new)})


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
        (outer, inner)
        for source in earlier.sources.values()
        for outer, names in source.contains.items()
        for inner in names
    }
    options = [f"--contains {outer}={inner}" for outer, inner in sorted(inside) if not new.ever_contains(outer, inner)]
    options += [f"--single {label}" for label in sorted(earlier.singles - new.singles)]
    return options + [f"--may-overlap {','.join(sorted(pair))}" for pair in earlier.may_overlap - new.may_overlap]
