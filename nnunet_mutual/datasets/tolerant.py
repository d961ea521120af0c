"""Reads as much of an annotation table as is right, and lists everything that is wrong with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_mutual.annotation.table import VERSION, AnnotationTable
from nnunet_mutual.datasets.problems import ERROR, Problem
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import BLOCK


def readable_table(dataset_json: Mapping[str, Any]) -> tuple[AnnotationTable, list[Problem]]:
    """Returns the table without its wrong entries, and one problem per wrong entry.

    A training uses the strict reader and stops at the first problem; whoever corrects a table wants to see all of them.

    Args:
        dataset_json: content of dataset.json.

    Raises:
        MutualError: labels or channels themselves cannot be read.
    """
    try:
        return AnnotationTable.from_dataset_json(dataset_json), []
    except MutualError as error:
        plain = {key: value for key, value in dataset_json.items() if key != BLOCK}
        AnnotationTable.from_dataset_json(plain)  # wrong labels or channels: nothing else can be said
        block = dataset_json.get(BLOCK)
        if not isinstance(block, Mapping) or not all(
            isinstance(block.get(key), Mapping) for key in ("sources", "cases")
        ):
            return AnnotationTable.from_dataset_json(plain | {BLOCK: _empty()}), [Problem(ERROR, "table", str(error))]
        refused = error
    problems: list[Problem] = []

    def accepted(place: str, candidate: Mapping[str, Any]) -> bool:
        try:
            AnnotationTable.from_dataset_json(plain | {BLOCK: candidate})
        except MutualError as reason:
            problems.append(Problem(ERROR, place, str(reason)))
            return False
        return True

    good: dict[str, Any] = _empty()
    for key, value in block.items():
        if key not in ("sources", "cases") and accepted("table", good | {key: value}):
            good[key] = value
    for name, entry in block["sources"].items():
        if accepted(f"source {name}", good | {"sources": {name: entry}}):
            good["sources"][name] = entry
    for key, entry in block["cases"].items():
        source = entry.get("source") if isinstance(entry, Mapping) else None
        if isinstance(source, str) and source in block["sources"] and source not in good["sources"]:
            continue  # its source was reported
        if accepted(f"case {key}", good | {"cases": {key: entry}}):
            good["cases"][key] = entry
    problems = problems or [Problem(ERROR, "table", str(refused))]  # of the block as a whole
    return AnnotationTable.from_dataset_json(plain | {BLOCK: good}), problems


def _empty() -> dict[str, Any]:
    return {"version": VERSION, "sources": {}, "cases": {}}
