"""Slow and plain re-derivation of the tri-state losses: names, sets and loops over voxels, from the method's equations.

Nothing here uses the package's annotation table or its look-up tables; a dataset is the raw content of a dataset.json.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.objectives.knowledge import Knowledge

SMOOTH = 1e-5


def dataset(labels: dict[str, Any], sources: dict[str, Any], **block: Any) -> dict[str, Any]:
    """A dataset.json with one case per source, both of the same name."""
    cases = {name: {"source": name} for name in sources}
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **labels},
        "mutual": {"version": 1, "sources": sources, "cases": cases, **block},
    }


def knowledge_of(content: dict[str, Any], keys: Sequence[str]) -> Knowledge:
    """What the trainer makes of a dataset.json."""
    table = AnnotationTable.from_dataset_json(content)
    return Knowledge(table, keys, len(table.labels) + (not table.is_regions))


def annotated_names(content: dict[str, Any], key: str) -> set[str]:
    case = content["mutual"]["cases"][key]
    return set(case.get("annotated", content["mutual"]["sources"][case["source"]]["annotated"]))


def names_in_part(content: dict[str, Any], key: str) -> set[str]:
    case = content["mutual"]["cases"][key]
    return set(case.get("incomplete", content["mutual"]["sources"][case["source"]].get("incomplete", ())))


def inside(content: dict[str, Any], key: str, label: str) -> set[str]:
    """Everything that the source of the case draws as part of a label."""
    contains = content["mutual"]["sources"][content["mutual"]["cases"][key]["source"]].get("contains", {})
    found = set(contains.get(label, ()))
    return found.union(*(inside(content, key, inner) for inner in found)) if found else found


def possible_names(content: dict[str, Any], key: str, drawn: str) -> set[str]:
    """S(v): what a voxel may be, given what is drawn there."""
    annotated = annotated_names(content, key)
    unannotated = set(content["labels"]) - {"background", "ignore"} - annotated
    if drawn == "background":
        return {"background"} | {u for u in unannotated if not any(u in inside(content, key, b) for b in annotated)}
    overlaps = [set(pair) for pair in content["mutual"].get("may_overlap", [])]
    return {drawn} | {u for u in unannotated if u in inside(content, key, drawn) or {u, drawn} in overlaps}


def may_hide_in(content: dict[str, Any], drawn: str) -> set[str]:
    """Labels that a voxel called ``drawn`` may have as well, by the rules of any source."""
    found = {other for pair in content["mutual"].get("may_overlap", []) if drawn in pair for other in pair} - {drawn}
    return found.union(*(inside(content, key, drawn) for key in content["mutual"]["cases"]))


def left_open(content: dict[str, Any], key: str, accepted: Set[str], drawn: str, decided: str | None) -> set[str]:
    """What a voxel may be, given what is drawn there and what was decided; accepted: pseudo labels of the case."""
    by_drawing = possible_names(content, key, drawn)
    if decided is None:
        return by_drawing
    doubtful = by_drawing - annotated_names(content, key) - accepted - {"background"}
    return {decided} | (doubtful if decided == drawn else doubtful & may_hide_in(content, decided))


def mean_dice(statistics: dict[tuple[int, str], list[tuple[Any, Any, Any]]], batch_dice: bool) -> Any:
    """Mean over annotated (sample, label), or over labels that any sample annotates; 0 without any."""
    groups: dict[Any, list[tuple[Any, Any, Any]]] = {}
    for (sample, label), voxels in statistics.items():
        groups.setdefault(label if batch_dice else (sample, label), []).extend(voxels)
    dice = []
    for voxels in groups.values():
        overlap, predicted, reference = (sum(column) for column in zip(*voxels, strict=True)) if voxels else (0, 0, 0)
        dice.append((2 * overlap + SMOOTH) / (predicted + reference + SMOOTH))
    return sum(dice) / len(dice) if dice else 0.0


def softmax_loss(
    logits: Tensor,
    target: Tensor,
    content: dict[str, Any],
    keys: Sequence[str],
    *,
    ignore_label: int | None = None,
    batch_dice: bool = False,
) -> tuple[Any, Any]:
    """Cross-entropy and Dice of float64 logits; the loss is their difference."""
    names = {value: name for name, value in content["labels"].items()}
    surprise, statistics = [], {}
    for sample, key in enumerate(keys):
        annotated = annotated_names(content, key)
        statistics.update({(sample, b): [] for b in annotated})
        for voxel in np.ndindex(*logits.shape[2:]):
            value = int(target[(sample, 0, *voxel)])
            if value == ignore_label or not annotated | names_in_part(content, key):
                continue
            weights = logits[(sample, slice(None), *voxel)].exp()
            p = dict(zip(sorted(names), weights / weights.sum(), strict=False))
            of_set = sum(p[content["labels"][name]] for name in possible_names(content, key, names[value]))
            surprise.append(-torch.log(of_set))
            for b in annotated:
                is_b = names[value] == b
                q = of_set if is_b else p[content["labels"][b]]
                statistics[sample, b].append((q * is_b, q, float(is_b)))
    cross_entropy = sum(surprise) / len(surprise) if surprise else 0.0
    return cross_entropy, mean_dice(statistics, batch_dice)


def region_state(
    content: dict[str, Any], annotated: set[str], drawn: dict[str, bool], asked: str, in_part: Set[str] = frozenset()
) -> bool | None:
    """Whether a voxel is in a region: True, False or None (nobody knows); a region drawn in part speaks if drawn."""
    if asked in annotated:
        return drawn[asked]

    def integers(name: str) -> set[int]:
        value = content["labels"][name]
        return set(value) if isinstance(value, list) else {value}

    opinions = set()
    for b in annotated | {b for b in in_part if drawn[b]}:
        if drawn[b] and integers(asked).isdisjoint(integers(b)):
            opinions.add(False)
        if not drawn[b] and integers(asked).issubset(integers(b)):
            opinions.add(False)
        if drawn[b] and integers(b).issubset(integers(asked)):
            opinions.add(True)
    return opinions.pop() if len(opinions) == 1 else None


def sigmoid_loss(
    logits: Tensor,
    target: Tensor,
    content: dict[str, Any],
    keys: Sequence[str],
    *,
    has_ignore: bool = False,
    batch_dice: bool = False,
) -> tuple[Any, Any]:
    """Cross-entropy and Dice of float64 logits; the loss is their difference."""
    names = [name for name in content["labels"] if name not in ("background", "ignore")]
    surprise, statistics = [], {}
    for sample, key in enumerate(keys):
        annotated, in_part = annotated_names(content, key), names_in_part(content, key)
        statistics.update({(sample, b): [] for b in annotated})
        for voxel in np.ndindex(*logits.shape[2:]):
            y = target[(sample, slice(None), *voxel)].bool().tolist()
            if has_ignore and y[-1]:
                continue
            drawn = dict(zip(names, y, strict=False))
            for channel, name in enumerate(names):
                p = 1 / (1 + torch.exp(-logits[(sample, channel, *voxel)]))
                state = region_state(content, annotated, drawn, name, in_part)
                if state is None and name in in_part:
                    surprise.append(torch.zeros((), dtype=logits.dtype))
                if state is not None:
                    surprise.append(-torch.log(p if state else 1 - p))
                if name in annotated:
                    statistics[sample, name].append((p * state, p, float(drawn[name])))
    cross_entropy = sum(surprise) / len(surprise) if surprise else 0.0
    return cross_entropy * (len(names) if has_ignore else 1), mean_dice(statistics, batch_dice)
