"""What a mask of one more label does to what was drawn, integer by integer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from partial_oracle import dataset

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.pseudo_labels.review.rules import Rule, put_in, rules_for

LABELS = {"liver": 1, "tumour": 2, "aorta": 3, "heart": 4, "spleen": 5}
SOURCES = {
    "with": {"annotated": ["liver", "spleen"], "contains": {"liver": ["tumour"]}},
    "without": {"annotated": ["liver", "tumour", "heart"]},
}
PLAIN = AnnotationTable.from_dataset_json(dataset(LABELS, SOURCES, may_overlap=[["aorta", "heart"]]))
REGIONS = AnnotationTable.from_dataset_json(
    dataset({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, {"a": {"annotated": ["whole"]}})
)


def case(source: str, *annotated: str) -> Case:
    return Case("case", source, frozenset(annotated))


def test_plain_labels() -> None:
    rules = rules_for(PLAIN, case("with", "liver", "spleen"), "tumour")
    assert rules[0] == Rule(2, 0) and rules[2] == Rule(2, 1), "a model's tumour has hidden the drawn liver"
    assert rules[1] == Rule(2, 1), "this source draws the liver with its tumour"
    assert rules[5] == Rule(None, 5)
    assert rules[3] == Rule(2, 3), "an aorta that a model drew"


def test_a_liver_that_is_drawn_in_part_may_end_before_the_tumour() -> None:
    some = Case("case", "with", frozenset({"spleen"}), incomplete=frozenset({"liver"}))
    assert rules_for(PLAIN, some, "tumour")[2] == Rule(2, 0)


def test_a_liver_drawn_without_its_tumour_contradicts_it() -> None:
    assert rules_for(PLAIN, case("without", "liver"), "tumour")[1] == Rule(None, 1)


def test_inner_and_overlapping_labels_stay() -> None:
    assert rules_for(PLAIN, case("without", "tumour"), "liver")[2] == Rule(2, 2), "as some source draws it"
    assert rules_for(PLAIN, case("without", "heart"), "aorta")[4] == Rule(4, 4)


def test_ignored_voxels_stay() -> None:
    for table in (PLAIN, REGIONS):
        label = table.labels[0]
        assert rules_for(replace(table, ignore=9), case(next(iter(table.sources))), label)[9] == Rule(9, 9)


def test_regions_by_hand() -> None:
    core = rules_for(REGIONS, case("a", "whole"), "core")
    assert core[1] == Rule(2, 1) and core[0] == Rule(None, 0), "a core outside of the drawn whole is a contradiction"
    whole = rules_for(REGIONS, case("a", "core"), "whole")
    assert whole[0] == Rule(1, 0) and whole[2] == Rule(2, 2), "a drawn core is part of the whole, mask or not"


@pytest.mark.parametrize("number", range(4))
def test_regions_never_change_what_was_drawn(number: int) -> None:
    for annotated in itertools.combinations(REGIONS.labels, number):
        for label in set(REGIONS.labels) - set(annotated):
            for y, rule in rules_for(REGIONS, case("a", *annotated), label).items():
                for z, inside in ((rule.inside, True), (rule.outside, False)):
                    if z is None:
                        continue
                    for name in annotated:
                        assert (z in REGIONS.values[name]) == (y in REGIONS.values[name])
                    if inside:
                        assert z in REGIONS.values[label]


def test_a_mask_takes_nothing_away_that_was_drawn_of_its_label() -> None:
    some = Case("case", "with", frozenset({"spleen"}), incomplete=frozenset({"liver"}))
    rules = rules_for(PLAIN, some, "liver")
    assert rules[1] == Rule(1, 1) and rules[0] == Rule(1, 0) and rules[5] == Rule(None, 5)
    assert rules_for(PLAIN, some, "aorta")[1] == Rule(None, 1), "what is drawn of it excludes others"
    core = Case("case", "a", frozenset({"whole"}), incomplete=frozenset({"core"}))
    expected = {0: Rule(None, 0), 1: Rule(2, 1), 2: Rule(2, 2), 3: Rule(3, 3)}
    assert rules_for(REGIONS, core, "core") == expected


def test_put_in() -> None:
    rules = rules_for(replace(PLAIN, ignore=6), case("with", "liver", "spleen"), "tumour")
    drawn = np.array([0, 0, 1, 1, 5, 5, 2, 2, 6], np.uint8)
    mask = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1], bool)
    merged, contradicts = put_in(drawn, mask, rules)
    assert merged.tolist() == [2, 0, 2, 1, 5, 5, 2, 1, 6] and merged.dtype == np.uint8
    assert contradicts.tolist() == [False] * 4 + [True] + [False] * 4
