"""Groups of partially labelled cases, and batches that hold several of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from partial_oracle import dataset

from nnunet_mutual.annotation.label_groups import choose_label_groups, describe_label_groups, home
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.loading import PooledLoader

LABELS = {name: i for i, name in enumerate("abcdef", 1)}


def table_of(**cases: str) -> AnnotationTable:
    """One case per argument, whose letters are the labels that it annotates."""
    return AnnotationTable.from_dataset_json(
        dataset(LABELS, {name: {"annotated": list(letters)} for name, letters in cases.items()})
    )


def groups_of(**cases: str) -> list[str]:
    return ["".join(sorted(group)) for group in choose_label_groups(table_of(**cases), cases)]


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ({"x": "ab", "y": "cd", "z": "ef"}, ["ab", "cd", "ef"]),
        ({"x": "abc", "y": "cd", "z": "ef"}, ["abc", "ef", "cd"]),  # then two new labels before one
        ({"x": "ab", "y": "bc", "z": "bc"}, ["bc", "ab"]),  # among equals the set with most cases
        ({"x": "ab", "y": "abcdef", "z": "cd"}, ["abcdef"]),
        ({"x": "a", "y": "b", "z": "c", "u": "d", "v": "e"}, ["a", "b", "c", "d"]),  # four at most
        ({"x": "", "y": "ab"}, ["ab"]),
        ({"x": ""}, []),
    ],
)
def test_groups_cover_the_labels(cases: dict[str, str], expected: list[str]) -> None:
    assert groups_of(**cases) == expected


def test_cases_of_other_sets_have_no_home() -> None:
    table = table_of(x="ab", y="cd", z="a", u="")
    groups = choose_label_groups(table, ["x", "y", "z", "u"])
    assert [home(groups, table.case(key).annotated) for key in "xyzu"] == [0, 1, None, None]
    text = describe_label_groups(table, ["x", "y", "z", "u"], groups)
    assert "network 0: a, b (1 cases" in text and "2 cases annotate other sets" in text and "no network" not in text


def test_labels_without_a_network_are_named() -> None:
    table = table_of(x="a", y="b", z="c", u="d", v="e")
    text = describe_label_groups(table, table.cases, choose_label_groups(table, table.cases))
    assert "no network for e: there are 4 at most" in text


class Cases:
    def __init__(self, names: list[str]):
        self.identifiers = names


class Labels:
    all_labels: list[int] = [1]
    has_ignore_label = False


def loader(pools: list[list[str]], batch: int, weights: Any = None) -> PooledLoader:
    names = [name for pool in pools for name in pool]
    return PooledLoader(
        Cases(names), batch, (8, 8, 8), (8, 8, 8), Labels(), sampling_probabilities=weights, pools=pools
    )


def test_a_batch_holds_as_many_groups_as_it_can() -> None:
    np.random.seed(0)
    pools = [["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]
    for batch in (2, 3, 4, 7):
        made = loader(pools, batch)
        for _ in range(50):
            count = Counter(key[0] for key in made.get_indices())
            assert sum(count.values()) == batch
            assert len(count) == min(batch, 3)
            assert max(count.values()) - min(count.get(pool, 0) for pool in "abc") <= 1


def test_probabilities_are_kept_within_and_between_groups() -> None:
    np.random.seed(0)
    made = loader([["a1", "a2"], ["b1"], ["c1"]], 1, [0.1, 0.3, 0.4, 0.2])
    count = Counter(made.get_indices()[0] for _ in range(4000))
    for key, expected in zip(("a1", "a2", "b1", "c1"), (0.1, 0.3, 0.4, 0.2), strict=True):
        assert count[key] / 4000 == pytest.approx(expected, abs=0.03)


def test_no_group_is_always_the_one_with_forced_foreground() -> None:
    np.random.seed(0)
    made = loader([["a1"], ["b1"]], 2)
    last = Counter(made.get_indices()[-1] for _ in range(400))
    assert 140 < last["a1"] < 260


def test_a_seed_fixes_the_batches() -> None:
    pools = [["a1", "a2", "a3"], ["b1", "b2"], ["c1"]]
    drawn = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        made = loader(pools, 2)
        drawn.append([made.get_indices() for _ in range(30)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_groups_are_drawn_by_the_probability_of_their_cases() -> None:
    """Two groups of three in a batch: the rare one less often, each case within its group as often as its weight."""
    np.random.seed(0)
    made = loader([["a1", "a2"], ["b1"], ["c1"]], 2, [0.45, 0.15, 0.3, 0.1])
    count = Counter(key for _ in range(3000) for key in made.get_indices())
    assert count["a1"] / count["a2"] == pytest.approx(3, rel=0.15)
    # P(pool in batch) = p + sum over the other q of q * p / (1 - q), drawn without replacement.
    for keys, p, rest in ((("a1", "a2"), 0.6, (0.3, 0.1)), (("b1",), 0.3, (0.6, 0.1)), (("c1",), 0.1, (0.6, 0.3))):
        expected = p + sum(q * p / (1 - q) for q in rest)
        assert sum(count[key] for key in keys) / 3000 == pytest.approx(expected, abs=0.03)


def test_the_order_of_cases_does_not_matter_to_the_groups() -> None:
    cases = {"x": "ab", "y": "bc", "z": "cd", "u": "ad"}
    table, names = table_of(**cases), list(cases)
    chosen = {tuple(choose_label_groups(table, order)) for order in (names, names[::-1], names[2:] + names[:2])}
    assert chosen == {(frozenset("ab"), frozenset("cd"))}
