"""Dice by hand: scored where annotated, left out elsewhere, NaN where nothing is there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.masks import annotated_masks, dice

LABELS = {"background": 0, "liver": 1, "tumour": 2, "spleen": 3}
SOURCES = {
    "all": {"annotated": ["liver", "tumour", "spleen"]},
    "liver only": {"annotated": ["liver"]},
    "liver with tumour": {"annotated": ["liver"], "contains": {"liver": ["tumour"]}},
    "spleen only": {"annotated": ["spleen"]},
    "some tumours": {"annotated": ["liver"], "incomplete": ["tumour"], "contains": {"liver": ["tumour"]}},
}
CASES = {"a": "all", "b": "liver only", "c": "liver with tumour", "d": "spleen only", "e": "some tumours"}


def dataset(*, overlap: bool = False, declared: bool = True) -> dict:
    content: dict = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 4, "file_ending": ".nii.gz"}
    if declared:
        cases = {key: {"source": source} for key, source in CASES.items()}
        content["mutual"] = {"version": 1, "sources": SOURCES, "cases": cases}
        if overlap:
            content["mutual"]["may_overlap"] = [["liver", "tumour"]]
    return content


def score_case(prediction: np.ndarray, reference: np.ndarray, *which: Any) -> dict[str, float]:
    return {m.label: dice(m.predicted, m.drawn) for m in annotated_masks(prediction, reference, *which)}


def scores(key: str, prediction: list[int], reference: list[int], **options: bool) -> dict[str, float]:
    table = AnnotationTable.from_dataset_json(dataset(**options))
    return score_case(np.array(prediction), np.array(reference), table, table.case(key))


def test_dice_by_hand() -> None:
    first = np.array([[1, 1, 1, 0]], dtype=bool)
    second = np.array([[0, 1, 1, 1]], dtype=bool)
    assert dice(first, second) == pytest.approx(2 * 2 / (3 + 3))
    assert dice(first, first) == 1
    assert dice(first, ~first) == 0
    assert dice(first, np.zeros_like(first)) == 0
    assert math.isnan(dice(np.zeros_like(first), np.zeros_like(first)))
    assert dice(np.zeros_like(first), np.zeros_like(first), empty=1.0) == 1
    assert type(dice(first, second)) is float


def test_other_shape_is_refused() -> None:
    with pytest.raises(MutualError, match=r"\(1, 4\).*\(4, 1\)"):
        dice(np.ones((1, 4), bool), np.ones((4, 1), bool))


def test_unannotated_labels_are_left_out() -> None:
    found = scores("b", prediction=[1, 1, 3, 3, 0], reference=[1, 0, 0, 0, 1])
    assert found == {"liver": pytest.approx(0.5)}  # 2 * 1 / (2 + 2), and nothing about the spleen


def test_a_label_drawn_in_part_is_not_scored_and_harms_no_other() -> None:
    found = scores("e", prediction=[2, 2, 1, 1, 2], reference=[2, 1, 1, 2, 0])
    # A drawn tumour that is found is no liver, one found in the drawn liver may be there, one that is taken for liver
    # and one outside of it are mistakes: 2 of 4 predicted voxels of liver, both drawn ones.
    assert found == {"liver": pytest.approx(2 * 2 / (4 + 2))}


def test_annotated_and_absent_is_nan_when_not_predicted_and_zero_when_predicted() -> None:
    found = scores("a", prediction=[1, 1, 3, 0], reference=[1, 1, 0, 0])
    assert found["liver"] == 1
    assert math.isnan(found["tumour"])
    assert found["spleen"] == 0


def test_unannotated_inner_label_counts_as_the_label_that_contains_it() -> None:
    prediction, reference = [1, 1, 2, 2, 0], [1, 1, 1, 0, 0]
    # with its tumour: predicted 4, drawn 3, common 3; without: the tumour voxel is no liver, predicted 2, common 2
    assert scores("c", prediction, reference)["liver"] == pytest.approx(6 / 7)
    assert scores("b", prediction, reference)["liver"] == pytest.approx(4 / 5)
    # an annotated tumour is its own label
    assert scores("a", prediction, [1, 1, 2, 0, 0])["liver"] == 1


def test_unannotated_overlap_partner_counts_only_where_the_label_was_drawn() -> None:
    prediction, reference = [1, 1, 2, 2, 0], [1, 1, 1, 0, 0]
    assert scores("b", prediction, reference, overlap=True)["liver"] == 1


def test_regions_hold_several_integers() -> None:
    content = dataset(declared=False)
    content["labels"] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    content["regions_class_order"] = [1, 2, 3]
    content["mutual"] = {
        "version": 1,
        "sources": {"outer": {"annotated": ["whole"]}, "both": {"annotated": ["whole", "core"]}},
        "cases": {"a": {"source": "outer"}, "b": {"source": "both"}},
    }
    table = AnnotationTable.from_dataset_json(content)
    prediction, reference = np.array([1, 2, 3, 0]), np.array([1, 1, 2, 1])
    assert score_case(prediction, reference, table, table.case("a")) == {"whole": pytest.approx(6 / 7)}
    both = score_case(prediction, reference, table, table.case("b"))
    assert both == {"whole": pytest.approx(6 / 7), "core": pytest.approx(2 / 3)}


def test_ignored_voxels_do_not_count() -> None:
    table = AnnotationTable.from_dataset_json(dataset())
    prediction, reference = np.array([1, 1, 1, 0]), np.array([1, 9, 9, 0])
    assert score_case(prediction, reference, replace(table, ignore=9), table.case("b")) == {"liver": 1}
