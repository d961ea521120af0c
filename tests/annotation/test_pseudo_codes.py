"""Drawn and decided values share a map: nothing drawn is ever lost, and only pairs that the dataset allows exist."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError

LABELS: dict[str, Any] = {"liver": 1, "tumour": 2, "spleen": 3, "cyst": 4, "aorta": 5}
NESTED = {
    "whole": {"annotated": ["liver"], "contains": {"liver": ["tumour"], "tumour": ["cyst"]}},
    "plain": {"annotated": ["liver", "spleen"]},
}
REGIONS = {"whole": [1, 2, 4], "core": [2, 4], "enhancing": 4}


def table_of(labels: dict[str, Any] = LABELS, sources: dict[str, Any] | None = None, **block: Any) -> AnnotationTable:
    block = {"version": 1, "sources": NESTED if sources is None else sources, "cases": {}, **block}
    return AnnotationTable.from_dataset_json(
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "mutual": block}
    )


PLAIN_CODES = PseudoCodes.from_table(replace(table_of(may_overlap=[["aorta", "spleen"]]), ignore=6))
REGION_CODES = PseudoCodes.from_table(table_of(REGIONS, {"a": {"annotated": ["whole"]}}))


def test_pairs_by_hand() -> None:
    # Containment counts at any depth and in any source; overlap both ways; the cyst contains nothing, so no choice.
    assert PLAIN_CODES.pairs == (
        *[(0, z) for z in range(6)],
        *[(1, 1), (1, 2), (1, 4)],
        *[(2, 2), (2, 4)],
        *[(3, 3), (3, 5)],
        *[(5, 5), (5, 3)],
    )
    assert (PLAIN_CODES.offset, PLAIN_CODES.size) == (7, 7 + 15)
    without_ignore = PseudoCodes.from_table(table_of())
    assert (without_ignore.offset, without_ignore.size) == (6, 6 + 11)


def test_pairs_of_regions_by_hand() -> None:
    assert set(REGION_CODES.pairs) == set(itertools.product([0, 1, 2, 4], repeat=2))
    assert (len(REGION_CODES.pairs), REGION_CODES.offset, REGION_CODES.size) == (16, 5, 21)


def test_a_dataset_without_a_block() -> None:
    table = AnnotationTable.from_dataset_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}})
    assert PseudoCodes.from_table(table).pairs == ((0, 0), (0, 1))


def test_the_order_in_dataset_json_does_not_matter() -> None:
    turned = dict(reversed(NESTED.items()))
    labels = dict(reversed(LABELS.items()))
    assert (
        PseudoCodes.from_table(replace(table_of(labels, turned), ignore=6)).pairs
        == PseudoCodes.from_table(replace(table_of(), ignore=6)).pairs
    )


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_choice_that_a_case_leaves_open_has_a_code(data: st.DataObject) -> None:
    """S(v) of the method, by sets of names, for random relations of random sources."""
    names = list(LABELS)
    ordered = list(itertools.combinations(names, 2))
    sources = {}
    for source in ("a", "b"):
        contains: dict[str, list[str]] = {}
        for outer, inner in data.draw(st.lists(st.sampled_from(ordered), unique=True, max_size=4)):
            contains.setdefault(outer, []).append(inner)
        annotated = data.draw(st.lists(st.sampled_from(names), unique=True))
        sources[source] = {"annotated": annotated, "contains": contains}
    overlaps = [list(pair) for pair in data.draw(st.lists(st.sampled_from(ordered), unique=True, max_size=2))]
    codes = PseudoCodes.from_table(replace(table_of(sources=sources, may_overlap=overlaps), ignore=6))

    def inside(contains: dict[str, list[str]], label: str) -> set[str]:
        return {deep for inner in contains.get(label, ()) for deep in {inner, *inside(contains, inner)}}

    expected = {(0, z) for z in range(6)}
    for b in names:
        partners = {other for pair in overlaps if b in pair for other in pair if other != b}
        for content in sources.values():
            partners |= inside(content["contains"], b)
        expected |= {(LABELS[b], LABELS[c]) for c in {b, *partners} if partners}
    assert set(codes.pairs) == expected
    assert len(codes.pairs) == len(expected)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    codes = data.draw(st.sampled_from([PLAIN_CODES, REGION_CODES]))
    undecided = [(y, -1) for y in range(-1, codes.offset)]
    shape = data.draw(st.sampled_from([(4,), (2, 3), (2, 1, 3)]))
    kind = data.draw(st.sampled_from([np.int8, np.int16, np.int64]))
    voxels = data.draw(arrays(np.int64, shape, elements=st.integers(0, len(codes.pairs) + len(undecided) - 1)))
    pairs = np.array([*codes.pairs, *undecided], dtype=kind)[voxels]
    true, decided = pairs[..., 0], pairs[..., 1]
    before = true.copy(), decided.copy()
    coded = codes.encode(true, decided)

    assert coded.dtype == np.int16
    assert coded.max() < codes.size
    np.testing.assert_array_equal(codes.true_values(coded), true)
    np.testing.assert_array_equal(codes.decided_values(coded), decided)
    np.testing.assert_array_equal(coded[decided == -1], true[decided == -1])
    assert (coded[decided >= 0] >= codes.offset).all(), "decided voxels must not read as undecided ones"
    np.testing.assert_array_equal((true, decided), before)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_true_label_survives_any_decision_that_is_not_refused(data: st.DataObject) -> None:
    true = data.draw(arrays(np.int16, (3, 2), elements=st.integers(-1, 6)))
    decided = data.draw(arrays(np.int16, (3, 2), elements=st.integers(-1, 6)))
    allowed = {*PLAIN_CODES.pairs, *((y, -1) for y in range(7)), *((y, z) for y in (-1, 6) for z in range(-1, 7))}
    wrong = [pair for pair in zip(true.flat, decided.flat, strict=True) if pair not in allowed]
    if wrong:
        with pytest.raises(MutualError) as error:
            PLAIN_CODES.encode(true, decided)
        assert f"the pair ({wrong[0][0]}, {wrong[0][1]}) is not allowed" in str(error.value)
    else:
        np.testing.assert_array_equal(PLAIN_CODES.true_values(PLAIN_CODES.encode(true, decided)), true)


def test_ignored_voxels_and_voxels_outside_the_image_stay_undecided() -> None:
    true, decided = np.array([6, 6, -1, -1, 0]), np.array([2, -1, 3, -1, 2])
    coded = PLAIN_CODES.encode(true, decided)
    np.testing.assert_array_equal(coded[:4], [6, 6, -1, -1])
    np.testing.assert_array_equal(PLAIN_CODES.decided_values(coded), [-1, -1, -1, -1, 2])
    np.testing.assert_array_equal(PLAIN_CODES.true_values(coded), true)


def test_an_empty_map_is_a_map() -> None:
    empty = np.zeros((0, 3), np.int16)
    assert PLAIN_CODES.decided_values(PLAIN_CODES.encode(empty, empty)).shape == (0, 3)


@pytest.mark.parametrize(
    ("true", "decided", "expected"),
    [
        ([0, 3, 0], [0, 1, 1], r"drawn as 3 was decided as 1: the pair \(3, 1\) .* leaves open: 3, 5; .*may_overlap"),
        ([4, 0, 0], [4, 1, 1], r"the pair \(4, 4\) is not allowed, 4 leaves open: nothing"),
        ([0, 7, 0], [0, -1, 1], r"a voxel is drawn as 7, which is no value of dataset.json \(largest: 6\)"),
        ([0, -2, 0], [0, -1, 1], "a voxel is drawn as -2"),
        ([0, 0, 0], [0, 9, 1], "a voxel is decided as 9"),
        ([0, 0, 0], [0, 1], r"shape \(3,\) and its decisions \(2,\)"),
    ],
)
def test_what_is_not_allowed_is_named(true: list[int], decided: list[int], expected: str) -> None:
    with pytest.raises(MutualError, match=expected):
        PLAIN_CODES.encode(np.array(true), np.array(decided))


@pytest.mark.parametrize("wrong", [PLAIN_CODES.size, -2, 300])
def test_codes_of_another_dataset_are_refused(wrong: int) -> None:
    codes = np.array([0, wrong, 1], np.int16)
    for read in (PLAIN_CODES.true_values, PLAIN_CODES.decided_values):
        with pytest.raises(MutualError, match=f"holds {wrong}, the codes of dataset.json end at 21; .* again"):
            read(codes)


def test_more_pairs_than_a_map_can_hold() -> None:
    def regions(count: int) -> AnnotationTable:
        labels = {"whole": list(range(1, count)), **{f"part{i}": i for i in range(2, count)}}
        return table_of(labels, {"a": {"annotated": ["whole"]}})

    largest = PseudoCodes.from_table(regions(180))
    true, decided = np.array([179]), np.array([179])
    assert largest.encode(true, decided) == largest.size - 1 == 180 + 180**2 - 1
    with pytest.raises(MutualError, match="need 32942 codes .* holds 32768; use fewer labels"):
        PseudoCodes.from_table(regions(181))
