"""Folds: every label validated where possible, patients together, nnU-Net's own where nothing speaks against it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.split_problems import fold_problems
from nnunet_mutual.datasets.splits import describe_splits, provide_splits, stratified_splits
from nnunet_mutual.errors import MutualError

LABELS = ("liver", "spleen", "kidney", "aorta")


def table_of(drawn: Mapping[str, Sequence[str]], patients: Mapping[str, str] | None = None) -> AnnotationTable:
    cases: dict[str, Any] = {key: {"source": "a", "annotated": list(names)} for key, names in drawn.items()}
    for key, patient in (patients or {}).items():
        cases[key]["patient"] = patient
    return AnnotationTable.from_dataset_json(
        {
            "labels": {"background": 0} | {name: i for i, name in enumerate(LABELS, 1)},
            "channel_names": {"0": "CT"},
            "mutual": {"version": 1, "sources": {"a": {"annotated": list(LABELS)}}, "cases": cases},
        }
    )


def counts(splits: list[dict[str, list[str]]], table: AnnotationTable, label: str) -> list[int]:
    return [sum(label in table.case(key).annotated for key in split["val"]) for split in splits]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("number", [5, 7, 33])
def test_fully_annotated_data_get_the_split_of_nnunet(number: int, declared: bool) -> None:
    keys = [f"case_{i:03d}" for i in range(number)]
    table = table_of(dict.fromkeys(keys, LABELS), {key: f"p{key}" for key in keys})
    if not declared:
        table = AnnotationTable.from_dataset_json(
            {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}
        )
    shuffled = random.Random(0).sample(keys, number)
    assert stratified_splits(table, shuffled) == generate_crossval_split(sorted(keys), seed=12345, n_splits=5)


def test_each_label_and_set_is_spread_evenly() -> None:
    kinds = [["liver"]] * 20 + [["spleen", "kidney"]] * 10 + [list(LABELS)] * 5
    table = table_of({f"c{i:02d}": names for i, names in enumerate(kinds)})
    splits = stratified_splits(table, list(table.cases))
    assert [len(split["val"]) for split in splits] == [7] * 5
    assert counts(splits, table, "liver") == [5] * 5
    assert counts(splits, table, "spleen") == [3] * 5
    assert counts(splits, table, "aorta") == [1] * 5


def test_cases_that_all_annotate_other_sets() -> None:
    """Where sets do not repeat, only the labels can be spread: each of them has ten cases and must reach every fold."""
    names = [f"c{i:02d}" for i in range(16)]
    subsets = [[label for bit, label in enumerate(LABELS) if i >> bit & 1] for i in range(16)]
    table = table_of(dict(zip(names, subsets, strict=True)))
    splits = stratified_splits(table, names)
    assert all(min(counts(splits, table, label)) >= 1 for label in LABELS)


def test_order_of_cases_does_not_matter_and_the_seed_does() -> None:
    drawn = {f"c{i:02d}": [LABELS[i % 3]] for i in range(30)}
    table = table_of(drawn)
    first = stratified_splits(table, list(drawn))
    assert stratified_splits(table, list(reversed(drawn))) == first
    assert stratified_splits(table, list(drawn), seed=7) != first


def test_what_one_patient_annotates_is_always_trained() -> None:
    drawn = {f"c{i:02d}": ["liver"] for i in range(12)} | {"x1": ["aorta"], "x2": ["aorta", "liver"]}
    table = table_of(drawn, {"x1": "p", "x2": "p"})
    splits = stratified_splits(table, list(drawn))
    assert all({"x1", "x2"} <= set(split["train"]) for split in splits)
    assert "never validated (they annotate nothing, or are the only ones with a label): x1, x2" in describe_splits(
        splits, table
    )


def test_cases_without_annotation_are_trained_but_not_beside_their_validation_patient() -> None:
    drawn: dict[str, list[str]] = {f"c{i:02d}": ["liver"] for i in range(10)} | {"u1": [], "u2": []}
    table = table_of(drawn, {"c00": "p", "u1": "p"})
    splits = stratified_splits(table, list(drawn))
    for split in splits:
        assert not {"u1", "u2"} & set(split["val"])
        assert "u2" in split["train"]
        assert ("u1" in split["train"]) == ("c00" in split["train"])


@st.composite
def tables(draw: st.DrawFn) -> AnnotationTable:
    number = draw(st.integers(5, 40))
    sets = draw(st.lists(st.sets(st.sampled_from(LABELS), min_size=1), min_size=number, max_size=number))
    people = draw(st.lists(st.integers(0, 30), min_size=number, max_size=number))
    drawn = {f"c{i:02d}": sorted(names) for i, names in enumerate(sets)}
    return table_of(drawn, {key: f"p{person}" for key, person in zip(drawn, people, strict=True) if person})


@settings(deadline=None, max_examples=150)
@given(tables())
def test_any_table(table: AnnotationTable) -> None:
    keys = list(table.cases)
    try:
        splits = stratified_splits(table, keys)
    except MutualError as error:
        assert "fold" in str(error)
        return
    validated = [key for split in splits for key in split["val"]]
    assert len(validated) == len(set(validated))
    assert len(splits) == 5
    used = {label for case in table.cases.values() for label in case.annotated}
    for number, split in enumerate(splits):
        assert split["val"]
        assert set(split["train"]) | set(split["val"]) == set(keys)
        errors = [problem.text for problem in fold_problems(table, split, number, used) if problem.severity == "error"]
        assert errors == [], "patients stay together, and every label that somebody annotates is trained in every fold"


def test_too_few_cases() -> None:
    table = table_of({f"c{i}": ["liver"] for i in range(4)})
    with pytest.raises(
        MutualError, match=r"4 case\(s\) cannot be divided into 5 folds; .* all -tr .* splits_final.json"
    ):
        stratified_splits(table, list(table.cases))
    assert len(stratified_splits(table, list(table.cases), n_folds=4)) == 4


def test_too_few_patients() -> None:
    drawn = {f"c{i}": ["liver"] for i in range(8)}
    table = table_of(drawn, {key: f"p{i // 2}" for i, key in enumerate(drawn)})
    with pytest.raises(MutualError, match=r"8 case\(s\) of 4 patient\(s\) cannot be divided into 5 folds"):
        stratified_splits(table, list(drawn))


def test_too_few_patients_that_can_be_validated() -> None:
    drawn: dict[str, list[str]] = {f"c{i}": ["liver"] for i in range(4)} | {"u1": [], "u2": [], "x": ["aorta"]}
    with pytest.raises(MutualError, match=r"only 4 patient\(s\) can be validated"):
        stratified_splits(table_of(drawn), list(drawn))


def test_unlisted_case() -> None:
    table = table_of({f"c{i}": ["liver"] for i in range(9)})
    with pytest.raises(MutualError, match="not listed .* c9"):
        stratified_splits(table, [f"c{i}" for i in range(10)])


def test_description() -> None:
    table = table_of({"c0": ["liver"], "c1": ["liver", "spleen"], "c2": ["spleen"]})
    text = describe_splits([{"train": ["c0", "c1"], "val": ["c2"]}, {"train": ["c2"], "val": ["c0"]}], table)
    rows = [line.split() for line in text.split("\n")]
    assert ["cases", "2/1", "1/1"] in rows
    assert ["liver", "2/0", "0/1"] in rows
    assert ["spleen", "1/1", "1/0"] in rows
    assert "fold 1: no training case annotates liver, so this fold cannot learn it" in text
    assert "fold 0: no validation case annotates liver, so this fold gives no score for it (n = 0)" in text


def table_of_modalities(
    lacks: Mapping[str, Sequence[str]], groups: Mapping[str, Sequence[str]] | None = None
) -> AnnotationTable:
    return AnnotationTable.from_dataset_json(
        {
            "labels": {"background": 0, "liver": 1},
            "channel_names": {"0": "T1", "1": "FLAIR"},
            "mutual": {
                "version": 1,
                "sources": {"a": {"annotated": ["liver"]}},
                "cases": {key: {"source": "a", "missing": list(channels)} for key, channels in lacks.items()},
                "modality_groups": dict(groups or {}),
            },
        }
    )


@pytest.mark.parametrize("groups", [{"T1": ["T1"], "FLAIR": ["FLAIR"], "both": ["T1", "FLAIR"]}, None])
@pytest.mark.parametrize("seed", range(5))
def test_every_fold_validates_and_trains_every_modality_group(groups: dict | None, seed: int) -> None:
    kinds = [["FLAIR"]] * 10 + [["T1"]] * 5 + [[]] * 6
    table = table_of_modalities({f"c{i:02d}": lack for i, lack in enumerate(kinds)}, groups)
    for split in stratified_splits(table, list(table.cases), seed=seed):
        lacking = [[channel in table.case(key).missing for key in split["val"]] for channel in ("FLAIR", "T1")]
        assert [sum(flags) for flags in lacking] == [2, 1] and len(split["val"]) - 3 in (1, 2)
        assert not fold_problems(table, split, 0)


def test_the_only_case_with_a_modality_group_is_trained_on_where_enough_others_can_be_validated() -> None:
    groups = {"T1": ["T1"], "FLAIR": ["FLAIR"]}
    for number, validated in ((6, False), (5, True)):
        table = table_of_modalities({f"c{i}": ["FLAIR"] if i else [] for i in range(number)}, groups)
        splits = stratified_splits(table, list(table.cases))
        assert any("c0" in split["val"] for split in splits) == validated
        text = describe_splits(splits, table)
        row = next(line.split() for line in text.splitlines() if "with FLAIR" in line)
        assert row[2:] == ["0/1" if "c0" in split["val"] else "1/0" for split in splits]
        assert (
            "never validated (they annotate nothing, or are the only ones with a label or a modality group): c0" in text
        ) == (not validated)
        for split in splits:
            (problem,) = fold_problems(table, split, 3)
            assert problem.severity == "warning" and "modality group FLAIR" in problem.text
            assert ("no annotated training case" in problem.text) == ("c0" in split["val"])
            assert ("(n = 0)" in problem.text) == ("c0" not in split["val"])


def test_channels_that_all_cases_lack_change_no_split() -> None:
    keys = [f"c{i}" for i in range(12)]
    table = table_of_modalities(dict.fromkeys(keys, ["FLAIR"]))
    assert stratified_splits(table, keys) == generate_crossval_split(sorted(keys), seed=12345, n_splits=5)


@pytest.mark.parametrize(
    ("fold", "sentence"),
    [
        ({"train": ["a", "zz"], "val": ["b"]}, r"names 1 case\(s\) that are not preprocessed \(zz\)"),
        ({"train": [], "val": ["b"]}, 'no training case .*"train" is empty'),
        ({"train": ["a"], "val": []}, 'no validation case .*"val" is empty'),
    ],
)
def test_a_fold_that_cannot_be_trained_names_the_file(tmp_path: Path, fold: dict, sentence: str) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["a"], "val": ["b"]}, fold]))
    whole = AnnotationTable.from_dataset_json({"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}})
    assert provide_splits(whole, ["a", "b"], 0, file) is None
    with pytest.raises(MutualError, match=rf"fold 1 of {file} .*{sentence}.*; correct it, or delete that file"):
        provide_splits(whole, ["a", "b"], 1, file)
