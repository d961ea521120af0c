"""Dice by hand: scored where annotated, left out elsewhere, NaN where nothing is there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation.masks import Evaluation, dice, evaluate_folders, score_case

LABELS = {"background": 0, "liver": 1, "tumour": 2, "spleen": 3}
SOURCES = {
    "all": {"annotated": ["liver", "tumour", "spleen"]},
    "liver only": {"annotated": ["liver"]},
    "liver with tumour": {"annotated": ["liver"], "contains": {"liver": ["tumour"]}},
    "spleen only": {"annotated": ["spleen"]},
}
CASES = {"a": "all", "b": "liver only", "c": "liver with tumour", "d": "spleen only"}


def dataset(*, overlap: bool = False, declared: bool = True) -> dict:
    content: dict = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 4, "file_ending": ".nii.gz"}
    if declared:
        cases = {key: {"source": source} for key, source in CASES.items()}
        content["mutual"] = {"version": 1, "sources": SOURCES, "cases": cases}
        if overlap:
            content["mutual"]["may_overlap"] = [["liver", "tumour"]]
    return content


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
    assert type(dice(first, second)) is float


def test_other_shape_is_refused() -> None:
    with pytest.raises(MutualError, match=r"\(1, 4\).*\(4, 1\)"):
        dice(np.ones((1, 4), bool), np.ones((4, 1), bool))


def test_unannotated_labels_are_left_out() -> None:
    found = scores("b", prediction=[1, 1, 3, 3, 0], reference=[1, 0, 0, 0, 1])
    assert found == {"liver": pytest.approx(0.5)}  # 2 * 1 / (2 + 2), and nothing about the spleen


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
    assert score_case(prediction, reference, table, table.case("b"), ignore=9) == {"liver": 1}


def test_means_and_counts() -> None:
    nan = math.nan
    evaluation = Evaluation(
        ("liver", "tumour", "spleen"),
        {"a": {"liver": 0.5, "tumour": nan, "spleen": 0.25}, "b": {"liver": 1.0}, "d": {"spleen": 0.75}},
    )
    assert evaluation.n == {"liver": 2, "tumour": 0, "spleen": 2}
    assert evaluation.mean["liver"] == 0.75
    assert evaluation.mean["spleen"] == 0.5
    assert math.isnan(evaluation.mean["tumour"])
    assert evaluation.overall == 0.625  # of the two labels that were scored
    written = json.loads(json.dumps(evaluation.as_json(), allow_nan=False))
    assert written["mean"] == {"liver": 0.75, "tumour": None, "spleen": 0.5}
    assert written["cases"]["a"] == {"liver": 0.5, "tumour": None, "spleen": 0.25}
    assert Evaluation(("liver",), {}).as_json()["overall"] is None


def write(folder: Path, key: str, voxels: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.array(voxels, np.uint8).reshape(1, 1, -1)), str(folder / f"{key}.nii.gz"))


def test_folders_are_scored_by_the_table(tmp_path: Path) -> None:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for key, prediction, reference in (
        ("a", [1, 1, 3, 0], [1, 0, 3, 0]),
        ("b", [1, 1, 3, 3], [1, 1, 0, 0]),
        ("d", [1, 1, 3, 3], [0, 0, 0, 3]),
    ):
        write(predictions, key, prediction)
        write(references, key, reference)
    found = evaluate_folders(predictions, references, dataset())
    assert list(found.cases) == ["a", "b", "d"]
    assert found.mean["liver"] == pytest.approx((2 / 3 + 1) / 2)
    assert found.mean["spleen"] == pytest.approx((1 + 2 / 3) / 2)
    assert found.n == {"liver": 2, "tumour": 0, "spleen": 2}
    json.dumps(found.as_json(), allow_nan=False)  # no NumPy scalar, no NaN
    # without a table every reference is complete, and what b and d did not draw is a false positive
    complete = evaluate_folders(predictions, references, dataset(declared=False), keys=["b", "d"])
    assert complete.cases["b"]["spleen"] == 0
    assert complete.cases["d"]["liver"] == 0


def test_missing_files_are_named(tmp_path: Path) -> None:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write(references, "a", [1])
    write(references, "b", [1])
    write(predictions, "a", [1])
    with pytest.raises(MutualError, match="predictions lacks 1 of 2 cases: b"):
        evaluate_folders(predictions, references, dataset())
    with pytest.raises(MutualError, match="references lacks 1 of 1 cases: d"):
        evaluate_folders(predictions, references, dataset(), keys=["d"])
    with pytest.raises(MutualError, match="holds no label maps"):
        evaluate_folders(predictions, tmp_path / "nothing", dataset())


def test_a_case_outside_the_table_and_another_grid_are_refused(tmp_path: Path) -> None:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for folder in (predictions, references):
        write(folder, "stranger", [1])
    with pytest.raises(MutualError, match="stranger"):
        evaluate_folders(predictions, references, dataset())
    write(predictions, "a", [1, 1])
    write(references, "a", [1])
    with pytest.raises(MutualError, match="a: a prediction of shape"):
        evaluate_folders(predictions, references, dataset(), keys=["a"])
