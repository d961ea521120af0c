"""How dataset.json writes what a case draws: what its source says of it already is left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from nnunet_mutual.annotation.cases import Outline


def ordered(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Returns names in the order of the known ones."""
    chosen = set(names)
    return [name for name in known if name in chosen]


def drawn_entry(
    source: Mapping[str, Any],
    annotated: Collection[str],
    incomplete: Collection[str],
    pseudo: Collection[str],
    labels: Sequence[str],
) -> dict[str, list[str]]:
    """Returns "annotated", "incomplete" and "pseudo" of a case, each only where its source says something else.

    Args:
        source: entry of its source.
        annotated: labels that are drawn completely.
        incomplete: labels that are drawn in part.
        pseudo: labels that a model drew.
        labels: of the dataset, in their order.
    """
    complete, in_part = (set(source.get(key, ())) - set(pseudo) for key in ("annotated", "incomplete"))
    entry = {}
    if complete != set(annotated) or in_part != set(incomplete):
        entry["annotated"] = ordered(annotated, labels)
        if in_part or incomplete:
            entry["incomplete"] = ordered(incomplete, labels)
    return {**entry, "pseudo": ordered(pseudo, labels)} if pseudo else entry


def outlined_entry(outlines: Iterable[Outline]) -> dict[str, Any]:
    """Returns the entry of a case that says who outlined its labels; none without outlines."""
    said = {
        one.label: {**({"by": one.by} if one.by else {}), **({"weight": one.weight} if one.weight != 1 else {})}
        for one in outlines
    }
    return {"outlined": said} if said else {}
