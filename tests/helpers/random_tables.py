"""Random annotation tables."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st
from partial_oracle import dataset

LABELS = {"liver": 1, "tumour": 2, "cyst": 3, "spleen": 4, "kidney": 5}
NAMES = ["background", *LABELS]
PAIRS = list(itertools.combinations(LABELS, 2))
SUBSETS = st.lists(st.sampled_from(list(LABELS)), unique=True)
REGIONS = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "other": [4], "both": [3, 4]}


def drawn_in_part(labels: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """What a source draws: each label completely, in part or not at all."""
    states = st.lists(st.sampled_from(["annotated", "incomplete", ""]), min_size=len(labels), max_size=len(labels))
    return states.map(
        lambda chosen: {
            key: [label for label, state in zip(labels, chosen, strict=True) if state == key]
            for key in ("annotated", "incomplete")
        }
    )


@st.composite
def plain_datasets(draw: st.DrawFn) -> dict[str, Any]:
    """Up to three sources, each with its own nesting; nothing contains itself."""
    sources = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        contains: dict[str, list[str]] = {}
        turned = draw(st.booleans())
        for pair in draw(st.lists(st.sampled_from(PAIRS), unique=True, max_size=4)):
            outer, inner = reversed(pair) if turned else pair
            contains.setdefault(outer, []).append(inner)
        sources[name] = {**draw(drawn_in_part(list(LABELS))), "contains": contains}
    return dataset(LABELS, sources, may_overlap=[list(p) for p in draw(st.lists(st.sampled_from(PAIRS), max_size=2))])


def region_datasets() -> st.SearchStrategy[dict[str, Any]]:
    drawn = drawn_in_part(list(REGIONS))
    return st.tuples(drawn, drawn).map(lambda sets: dataset(REGIONS, dict(zip("ab", sets, strict=True))))
