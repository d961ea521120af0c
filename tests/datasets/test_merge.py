"""merge: what the new dataset holds, and that nnU-Net and check accept it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from merging import FLIPPED, OUT, Pair, block_of, read, regions, unlabelled, voxels
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from raw_dataset import SHAPE

from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.check import check
from nnunet_mutual.datasets.merge.contains import looks_inside


@pytest.fixture()
def pair(nnunet_folders: Path) -> Pair:
    return Pair(nnunet_folders)


def dataset_json(pair: Pair) -> dict:
    return json.loads((pair.out / "dataset.json").read_text())


def test_labels_by_name_images_linked_table_written(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    pair.spleen.save(licence="CC BY")
    before = pair.state()
    assert pair.merge() == 0
    printed = capsys.readouterr().out
    content = dataset_json(pair)
    assert content["labels"] == {"background": 0, "liver": 1, "kidney": 2, "spleen": 3}
    assert (content["numTraining"], content["channel_names"]) == (5, {"0": "CT"})
    assert content["merged_from"]["Dataset012_Spleen"] == {"licence": "CC BY"}
    assert content["mutual"]["sources"] == {
        "Liver": {"annotated": ["liver"]},
        "Spleen": {"annotated": ["kidney", "spleen"]},
    }
    assert content["mutual"]["cases"]["Spleen_s_2"] == {"source": "Spleen"}
    assert np.array_equal(np.bincount(pair.label_map("Spleen_s_2").ravel()), [90, 0, 10, 20])  # kidney 1, spleen 2
    linked, own = (folder / "imagesTr" for folder in (pair.out, pair.spleen.folder))
    assert (linked / "Spleen_s_2_0000.nii.gz").samefile(own / "s_2_0000.nii.gz")
    assert {name: digest for name, digest in pair.state().items() if OUT not in name} == before
    assert list(get_filenames_of_train_images_and_targets(str(pair.out))) == sorted(content["mutual"]["cases"])
    assert "kidney       -      3/2   3/2" in printed  # annotated by Spleen only, in three cases, to be seen in two
    assert printed.rstrip().endswith(f"Next:  nnunet_mutual check {OUT}")
    assert check(111) == 0


def test_datasets_without_a_table_are_taken_for_fully_drawn_loudly(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pair.merge() == 0
    printed = capsys.readouterr().out
    counts = "kidney has voxels in 2 of 3 cases, spleen has voxels in 2 of 3 cases"
    assert f"WARNING: Dataset012_Spleen has no table: every case counts as fully drawn; {counts}; where" in printed
    said = f"nnunet_mutual annotate Dataset012_Spleen TABLE.csv, then remove {pair.out} and merge again"
    assert said in printed and printed.count("WARNING") == 1, "the liver is in every case of its dataset"


def test_a_table_is_believed(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    block_of(
        pair.spleen,
        {"Spleen": {"annotated": ["kidney", "spleen"]}},
        {
            "s_1": {"source": "Spleen", "annotated": ["spleen"]},
            "s_2": {"source": "Spleen"},
            "s_3": {"source": "Spleen", "annotated": ["kidney"]},
        },
    )
    assert pair.merge() == 0
    assert "WARNING" not in capsys.readouterr().out


def test_case_list_says_where_each_case_came_from(pair: Pair) -> None:
    assert pair.merge() == 0
    with (pair.out / "merged_cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[-1] == {
        "case": "Spleen_s_3",
        "dataset": "Dataset012_Spleen",
        "case_there": "s_3",
        "use": "labelled",
    }


def _fails(*_: object, **__: object) -> None:
    raise OSError(1, "Operation not permitted")


@pytest.mark.parametrize("broken", [("link",), ("link", "symlink")])
def test_links_where_possible_else_copies(pair: Pair, monkeypatch: pytest.MonkeyPatch, broken: Sequence[str]) -> None:
    for name in broken:
        monkeypatch.setattr(os, name, _fails)
    assert pair.merge() == 0
    image = pair.out / "imagesTr" / "Liver_c_1_0000.nii.gz"
    original = pair.liver.folder / "imagesTr" / "c_1_0000.nii.gz"
    assert image.is_symlink() is (broken == ("link",))
    assert image.read_bytes() == original.read_bytes()
    assert check(111) == 0


def test_copy_leaves_nothing_linked(pair: Pair) -> None:
    assert pair.merge("--copy") == 0
    image = pair.out / "imagesTr" / "Liver_c_1_0000.nii.gz"
    assert not image.is_symlink() and image.stat().st_nlink == 1


def test_rename_unites_a_label_of_two_datasets(pair: Pair) -> None:
    pair.spleen.save(labels={"background": 0, "Leber": 1, "spleen": 2})
    assert pair.merge("--rename", "Spleen:Leber=liver") == 0
    assert dataset_json(pair)["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert (pair.label_map("Spleen_s_3") == 1).sum() == 10


def test_rename_makes_two_labels_of_one_dataset_one(pair: Pair) -> None:
    assert pair.merge("--rename", "12:kidney=organ", "--rename", "12:spleen=organ") == 0
    assert dataset_json(pair)["labels"] == {"background": 0, "liver": 1, "organ": 2}
    assert (pair.label_map("Spleen_s_2") == 2).sum() == 30


def test_ignore_becomes_the_highest_value(pair: Pair) -> None:
    pair.liver.save(labels={"background": 0, "liver": 1, "ignore": 2})
    pair.liver.label("c_1", {1: 5, 2: 7})
    assert pair.merge() == 0
    assert dataset_json(pair)["labels"] == {"background": 0, "liver": 1, "kidney": 2, "spleen": 3, "ignore": 4}
    assert np.array_equal(np.bincount(pair.label_map("Liver_c_1").ravel()), [108, 5, 0, 0, 7])
    assert check(111) == 0


def test_other_endings_are_converted_with_their_geometry(nnunet_folders: Path) -> None:
    pair = Pair(nnunet_folders, ending=".nrrd")
    geometry = {"spacing": (1.5, 2, 3), "origin": (4, 5, 6)}
    pair.liver.image("c_1", voxels(0), **geometry)
    pair.liver.label("c_1", {1: 5}, **geometry)
    assert pair.merge("--ending", ".nii.gz") == 0
    for path in (pair.out / "imagesTr" / "Liver_c_1_0000.nii.gz", pair.out / "labelsTr" / "Liver_c_1.nii.gz"):
        image = sitk.ReadImage(str(path))
        assert np.allclose(image.GetSpacing(), (1.5, 2, 3)) and np.allclose(image.GetOrigin(), (4, 5, 6))
    assert np.array_equal(read(pair.out / "imagesTr" / "Liver_c_1_0000.nii.gz"), voxels(0))
    assert check(111) == 0


def test_first_dataset_sets_the_ending(nnunet_folders: Path) -> None:
    pair = Pair(nnunet_folders, ending=".nrrd")
    assert pair.merge() == 0
    assert dataset_json(pair)["file_ending"] == ".nrrd"
    assert (pair.label_map("Spleen_s_2", ".nrrd") == 3).sum() == 20
    assert check(111) == 0


def test_existing_tables_are_kept_with_prefix(pair: Pair) -> None:
    block_of(
        pair.spleen,
        {"north": {"annotated": ["spleen"]}, "south": {"annotated": ["kidney"], "contains": {"kidney": ["spleen"]}}},
        {
            "s_1": {"source": "north", "patient": "p1"},
            "s_2": {
                "source": "north",
                "annotated": ["kidney", "spleen"],
                "outlined": {"kidney": {"by": "T", "weight": 0.5}},
            },
            "s_3": {"source": "south", "pseudo": ["spleen"]},
        },
        labels={"spleen": {"single": True}},
        may_overlap=[["spleen", "kidney"]],
        modality_groups={"all": ["CT"]},
    )
    assert pair.merge() == 0
    block = dataset_json(pair)["mutual"]
    assert block["sources"]["Spleen_south"] == {"annotated": ["kidney"], "contains": {"kidney": ["spleen"]}}
    assert block["cases"]["Spleen_s_1"] == {"source": "Spleen_north", "patient": "p1"}
    assert block["cases"]["Spleen_s_2"]["annotated"] == ["kidney", "spleen"]
    assert block["cases"]["Spleen_s_2"]["outlined"] == {"kidney": {"by": "T", "weight": 0.5}}
    assert block["cases"]["Spleen_s_3"] == {"source": "Spleen_south", "pseudo": ["spleen"]}
    assert block["labels"] == {"spleen": {"single": True}}
    assert block["may_overlap"] == [["kidney", "spleen"]] and block["modality_groups"] == {"all": ["CT"]}


def test_merged_datasets_merge_again(pair: Pair) -> None:
    assert pair.merge() == 0
    third = Pair(pair.root.parent / "other").spleen
    third.folder = third.folder.rename(pair.root / "Dataset013_More")
    for number, key in enumerate(third.drawn, 50):
        third.image(key, voxels(number))
    assert main(["merge", "111", "13", "Dataset112_All"]) == 0
    content = json.loads((pair.root / "Dataset112_All" / "dataset.json").read_text())
    assert set(content["mutual"]["sources"]) == {"Abdomen_Liver", "Abdomen_Spleen", "More"}
    assert check(112) == 0


def test_equal_images_become_one_case_with_all_that_was_drawn(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    pair.twin({1: 10}, {0: 10, 2: 15})
    assert pair.merge() == 0
    assert "1 image(s) were in several datasets" in capsys.readouterr().out
    content = dataset_json(pair)
    assert content["numTraining"] == 4 and "Spleen_s_1" not in content["mutual"]["cases"]
    assert content["mutual"]["cases"]["Liver_c_1"] == {"source": "Liver", "annotated": ["liver", "kidney", "spleen"]}
    assert np.array_equal(np.bincount(pair.label_map("Liver_c_1").ravel()), [95, 10, 0, 15])
    assert check(111) == 0


def _tumour(pair: Pair) -> None:
    pair.spleen.save(labels={"background": 0, "liver_tumour": 1, "spleen": 2})


def test_drawn_tumour_inside_a_liver_that_contains_it_is_no_contradiction(pair: Pair) -> None:
    _tumour(pair)
    pair.twin({1: 20}, {0: 5, 1: 8})
    assert pair.merge("--contains", "Liver:liver=liver_tumour") == 0
    assert np.array_equal(np.bincount(pair.label_map("Liver_c_1").ravel()), [100, 12, 8])
    assert dataset_json(pair)["mutual"]["sources"]["Liver"]["contains"] == {"liver": ["liver_tumour"]}


@pytest.mark.parametrize(
    ("liver_too", "source"),
    [
        (False, {"source": "Spleen", "annotated": ["liver", "kidney", "spleen"]}),  # what Spleen contains is enough
        (True, {"source": "Liver+Spleen"}),  # neither source says all
    ],
)
def test_equal_image_keeps_what_each_source_contains(pair: Pair, liver_too: bool, source: dict) -> None:
    third = Pair(pair.root.parent / "other").liver
    third.folder = third.folder.rename(pair.root / "Dataset013_Tumour")
    third.save(labels={"background": 0, "liver_tumour": 1, "spleen_tumour": 2})
    for number, key in enumerate(third.drawn, 70):
        third.image(key, voxels(number))
    pair.twin({1: 10}, {0: 10, 2: 15})
    option = "--contains" if liver_too else "--no-contains"
    said = ["--contains", "Spleen:spleen=spleen_tumour", option, "Liver:liver=liver_tumour"]
    assert main(["merge", "11", "12", "13", OUT, *said]) == 0
    block = dataset_json(pair)["mutual"]
    assert block["cases"]["Liver_c_1"] == source
    if liver_too:
        assert block["sources"]["Liver+Spleen"] == {
            "annotated": ["liver", "kidney", "spleen"],
            "contains": {"liver": ["liver_tumour"], "spleen": ["spleen_tumour"]},
        }


@pytest.mark.parametrize(("winner", "expected"), [("Liver", [95, 10, 0, 15]), ("12", [100, 5, 0, 15])])
def test_prefer_decides_contradictions_and_lists_them(pair: Pair, winner: str, expected: list[int]) -> None:
    pair.spleen.save(labels={"background": 0, "liver": 1, "spleen": 2})
    pair.twin({1: 10}, {1: 5, 0: 5, 2: 15})
    assert pair.merge("--prefer", winner) == 0
    counts = np.bincount(pair.label_map("Liver_c_1").ravel(), minlength=3)
    assert list(counts) == [expected[0], expected[1], expected[3]]
    with (pair.out / "contradictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["voxels"] for row in rows] == ["5"]
    assert rows[0]["drawn_there"] == "liver | background"
    assert rows[0]["written"] == ("liver" if winner == "Liver" else "background")


def test_questions_are_asked_at_a_terminal(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _tumour(pair)
    answers = iter(["perhaps", "y"])
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or next(answers))
    assert pair.merge() == 0
    assert len(asked) == 2 and "Is liver_tumour part of the drawn liver there?" in asked[0]
    assert dataset_json(pair)["mutual"]["sources"]["Liver"]["contains"] == {"liver": ["liver_tumour"]}


def test_no_contains_is_remembered_as_nothing(pair: Pair) -> None:
    _tumour(pair)
    assert pair.merge("--no-contains", "11:liver=liver_tumour") == 0
    assert "contains" not in dataset_json(pair)["mutual"]["sources"]["Liver"]


@pytest.mark.parametrize(
    ("inner", "outer", "together", "expected"),
    [
        ("liver_tumour", "liver", False, True),
        ("LiverTumor", "Liver", False, True),
        ("tumour", "liver", True, True),
        ("tumour", "liver", False, False),
        ("kidney_left", "kidney", False, True),
        ("liver", "liver_tumour", False, False),
        ("tumour_necrosis", "tumour", False, False),
        ("spleen", "liver", True, False),
        ("Brainstem", "Brain", False, False),
    ],
)
def test_names_that_look_like_organ_and_part(inner: str, outer: str, together: bool, expected: bool) -> None:
    assert looks_inside(inner, outer, together=together) is expected


def test_regions_with_equal_label_maps(pair: Pair) -> None:
    regions(pair)
    pair.twin({1: 10, 2: 5}, {1: 10, 2: 5})
    assert pair.merge() == 0
    content = dataset_json(pair)
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": [2]}
    assert content["regions_class_order"] == [1, 2] and content["numTraining"] == 4
    assert np.array_equal(np.bincount(pair.label_map("Liver_c_1").ravel()), [105, 10, 5])


def test_region_drawings_of_one_image_are_united(pair: Pair) -> None:
    regions(pair)
    pair.twin({1: 20}, {0: 5, 2: 8})
    keys = {"c_1": ["whole"], "c_2": ["whole"]}
    block_of(
        pair.liver, {"a": {"annotated": ["whole"]}}, {key: {"source": "a", "annotated": v} for key, v in keys.items()}
    )
    block_of(pair.spleen, {"b": {"annotated": ["core"]}}, {key: {"source": "b"} for key in ("s_1", "s_2", "s_3")})
    pair.spleen.label("s_2", {2: 4})
    pair.spleen.label("s_3", {2: 4})
    assert pair.merge() == 0
    assert np.array_equal(np.bincount(pair.label_map("Liver_c_1").ravel()), [100, 12, 8])


def test_reorient_makes_nnunet_turn_the_images(pair: Pair) -> None:
    pair.spleen.image("s_1", voxels(3), direction=FLIPPED)
    pair.spleen.label("s_1", {2: 9}, direction=FLIPPED)
    assert pair.merge("--reorient") == 0
    assert dataset_json(pair)["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    label = sitk.ReadImage(str(pair.out / "labelsTr" / "Spleen_s_1.nii.gz"))
    assert np.allclose(label.GetDirection(), FLIPPED)
    assert np.array_equal(sitk.GetArrayFromImage(label).ravel()[:9], [3] * 9)
    assert check(111) == 0


@pytest.mark.parametrize("why", ["a dataset asks for it", "another format"])
def test_an_image_is_known_however_its_dataset_is_turned(nnunet_folders: Path, why: str) -> None:
    pair = Pair(nnunet_folders, ending=".nrrd" if why == "another format" else ".nii.gz")
    pair.twin({1: 20}, {0: 20, 2: 8})
    if why == "a dataset asks for it":
        pair.liver.save(overwrite_image_reader_writer="NibabelIOWithReorient")
    block_of(pair.liver, {"a": {"annotated": ["liver"]}}, {key: {"source": "a"} for key in pair.liver.drawn})
    drawn = {"b": {"annotated": ["kidney", "spleen"]}}
    block_of(pair.spleen, drawn, {key: {"source": "b"} for key in pair.spleen.drawn})
    options = ["--reorient", "--ending", ".nii.gz"] if why == "another format" else []
    assert pair.merge(*options) == 0
    assert dataset_json(pair)["numTraining"] == 4
    label = pair.label_map("Liver_c_1").ravel()
    assert (label[:20] == 1).all() and (label[20:28] == 3).all() and not label[28:].any()


def test_unlabelled_images_are_listed_with_their_source(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    unlabelled(pair.liver, {"u_1": voxels(40), "u_2": voxels(1)})  # u_2 is the image of c_2
    pair.liver.image("c_2", voxels(1))
    unlabelled(pair.spleen, {"u_1": voxels(42)})
    assert pair.merge() == 0
    assert "1 unlabelled image(s) are copies of another one" in capsys.readouterr().out
    assert sorted(path.name for path in (pair.out / "imagesUn").iterdir()) == [
        "Liver_u_1_0000.nii.gz",
        "Spleen_u_1_0000.nii.gz",
    ]
    content = dataset_json(pair)
    assert content["mutual"]["cases"]["Liver_u_1"] == {"source": "Liver"} and content["numTraining"] == 5
    assert check(111) == 0


def test_patients_of_two_datasets(pair: Pair) -> None:
    for dataset in (pair.liver, pair.spleen):
        cases = {key: {"source": "a", "patient": f"p{key[-1]}"} for key in dataset.drawn}
        block_of(dataset, {"a": {"annotated": [n for n in dataset.content["labels"] if n != "background"]}}, cases)
    assert pair.merge("--patients", "separate") == 0
    cases = dataset_json(pair)["mutual"]["cases"]
    assert [cases[key]["patient"] for key in ("Liver_c_1", "Spleen_s_1", "Spleen_s_3")] == [
        "Liver_p1",
        "Spleen_p1",
        "p3",
    ]


def test_short_names_that_could_collide_get_their_numbers(pair: Pair) -> None:
    pair.spleen.folder.rename(pair.root / "Dataset012_Liver_b")
    assert pair.merge() == 0
    assert {"011_Liver_c_1", "012_Liver_b_s_1"} <= set(dataset_json(pair)["mutual"]["cases"])


def test_intensities_are_printed_and_differences_can_be_accepted(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, key in enumerate(pair.spleen.drawn):
        pair.spleen.image(key, 100 * voxels(20 + number, 10.24))
    assert pair.merge("--accept-intensities") == 0
    printed = capsys.readouterr().out
    assert "intensities (percentiles of an image" in printed and "are far from those of Liver" in printed
    assert np.shape(pair.label_map("Liver_c_1")) == SHAPE
