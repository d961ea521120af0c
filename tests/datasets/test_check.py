"""What check says about a dataset as a whole: the matrix, tables, folds, and the next command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.io
from checking import VOXELS, broken, broken_label, entry, examine, nan, sentences
from raw_dataset import DRAWN, NAME, SHAPE, RawDataset

from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.check import check
from nnunet_mutual.errors import MutualError


@pytest.fixture()
def raw(nnunet_folders: Path) -> RawDataset:
    dataset = RawDataset(nnunet_folders)
    dataset.declare()
    return dataset


def test_good_dataset(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = examine(capsys)
    assert (status, report["problems"], report["ok"], report["declared"]) == (0, [], True, True)
    assert report["training_cases"] == 5
    cells = {cell["label"]: (cell["annotated"], cell["present"], cell["outside"]) for cell in report["coverage"]}
    assert cells == {"liver": (3, 3, 0), "spleen": (3, 3, 0), "kidney": (3, 3, 0)}


def test_printed_matrix_and_next_command(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    raw.save(
        mutual={
            "version": 1,
            "sources": {"A": {"annotated": ["liver"]}, "B": {"annotated": ["spleen", "kidney"]}},
            "cases": {
                **{key: {"source": "A"} for key in ("toy_001", "toy_002")},
                **{key: {"source": "B"} for key in ("toy_003", "toy_004")},
                "toy_010": {"source": "B", "annotated": ["liver", "spleen", "kidney"]},
            },
        }
    )
    raw.label("toy_004", {2: 7})
    assert check(777) == 0
    rows = [line.split() for line in capsys.readouterr().out.split("\n")]
    assert ["label", "A", "B", "all"] in rows
    assert ["cases", "2", "3", "5"] in rows
    assert ["liver", "2/2", "1/1", "3/3"] in rows
    assert ["kidney", "-", "3/2", "3/2"] in rows
    assert ["No", "errors.", "Next:", "nnunet_mutual", "plan_and_preprocess", "-d", "777", "-c", "3d_fullres"] in rows


def test_dataset_without_a_block(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    del raw.content["mutual"]
    raw.save()
    assert check(777) == 0
    printed = capsys.readouterr().out
    counts = "liver has voxels in 3 of 5 cases, spleen has voxels in 3 of 5 cases, kidney has voxels in 3 of 5 cases"
    assert f"WARNING: {NAME} has no table: every case counts as fully drawn; {counts}; where it was not" in printed
    assert f"say who drew what: nnunet_mutual annotate {NAME} TABLE.csv" in printed
    assert "label liver: no voxel in 2 of 5 cases (toy_003, toy_004): absent there, or only not drawn?" in printed
    following = f"Next, unless every label was drawn wherever it is:  nnunet_mutual annotate {NAME} TABLE.csv\nElse:  "
    assert f"{following}nnunet_mutual plan_and_preprocess -d 777" in printed


def test_a_dataset_without_a_block_in_which_everything_is_drawn(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RawDataset(nnunet_folders, {"a": ["liver"], "b": ["liver"]}, {"background": 0, "liver": 1})
    assert check(777) == 0
    printed = capsys.readouterr().out
    assert "has no table: every case counts as fully drawn\n" in printed and "WARNING" not in printed
    assert "TABLE" not in printed  # nothing asks for one


def test_checking_changes_nothing(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in raw.folder.rglob("*")}
    check(777)
    assert {path: path.stat().st_mtime_ns for path in raw.folder.rglob("*")} == before


def test_all_problems_at_once(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    raw.content["mutual"]["sources"]["b"] = {"annotated": ["lung"]}
    raw.content["mutual"]["sources"]["c"] = {"anotated": ["liver"]}
    raw.content["mutual"]["cases"]["toy_003"] = {"source": "b"}
    raw.content["mutual"]["may_overlap"] = [["liver"]]
    entry("toy_001", annotated=["livr"])(raw)
    raw.label("toy_002", {3: 4})
    broken(raw)
    _, report = examine(capsys)
    places = [p["place"] for p in report["problems"] if p["severity"] == "error"]
    expected = [
        "table",
        "source b",
        "source c",
        "case toy_001",
        "imagesTr/toy_001_0000.nii.gz",
        "labelsTr/toy_002.nii.gz",
    ]
    assert places == expected


def test_declared_missing_channel(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    raw.save(channel_names={"0": "CT", "1": "PET"})
    for key in DRAWN:
        if key != "toy_001":
            raw.image(key, VOXELS, channel=1)
    entry("toy_001", missing=["PET"])(raw)
    status, report = examine(capsys)
    assert status == 2  # nnU-Net needs a file for every channel
    assert (
        "channel PET: declared missing, without an image, in 1 case(s) (toy_001); add an"
        in sentences(report, "error")[0]
    )
    raw.content["mutual"]["modality_groups"] = {"CT": ["CT"], "PET": ["PET"]}
    raw.save()
    status, report = examine(capsys)
    assert status == 0 and "nnUNetv2_plan_and_preprocess needs an image of zeros" in sentences(report, "warning")[0]
    raw.image("toy_001", np.zeros(SHAPE), channel=1)
    assert examine(capsys) == (0, {**report, "problems": []})


def test_unlabelled_images_need_every_channel_too(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = RawDataset(nnunet_folders)
    for number, key in enumerate(DRAWN):
        raw.image(key, np.random.default_rng(100 + number).normal(size=SHAPE), channel=1)
    raw.save(channel_names={"0": "T1", "1": "FLAIR"})
    (raw.folder / "imagesUn").mkdir()
    for name in ("new_1_0000", "new_1_0001", "new_2_0000", "new_3_0001"):
        shutil.copy(raw.folder / "imagesTr" / "toy_001_0000.nii.gz", raw.folder / "imagesUn" / f"{name}.nii.gz")
    assert check(NAME) == 2
    said = capsys.readouterr().out
    for number, name, case in ((0, "T1", "new_3"), (1, "FLAIR", "new_2")):
        assert f"imagesUn: no image of channel 000{number} ({name}) in 1 case(s) ({case}); add it, move" in said
    apart = {"new_2": {"source": "a", "missing": ["FLAIR"]}, "new_3": {"source": "a", "missing": ["T1"]}}
    raw.declare(modality_groups={"T1": ["T1"], "FLAIR": ["FLAIR"]})
    block = raw.content["mutual"]
    raw.save(mutual={**block, "cases": {**block["cases"], **apart}})
    assert check(NAME) == 0
    assert "no image of channel" not in capsys.readouterr().out
    missing = {key: {"source": "a", "annotated": list(DRAWN[key]), "missing": ["FLAIR"]} for key in list(DRAWN)[:1]}
    (raw.folder / "imagesTr" / "toy_001_0001.nii.gz").unlink()
    raw.save(mutual={**block, "cases": {**block["cases"], **missing, "new_3": apart["new_3"]}})
    assert check(NAME) == 2, "a case that declares it may lack a file says nothing about others"
    assert "(FLAIR) in 1 case(s) (new_2)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["imagesUN", "imagesUnlabelled", "images_un", "unlabeled"])
def test_a_misspelt_folder_of_unlabelled_images(raw: RawDataset, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (raw.folder / name).mkdir()
    (raw.folder / "imagesTs").mkdir()
    status, report = examine(capsys)
    assert status == 0 and sentences(report, "warning") == [
        f"{name}: nothing reads this folder; if it holds images without label maps, call it imagesUn"
    ]
    (raw.folder / name).rename(raw.folder / "imagesUn")
    assert examine(capsys)[1]["problems"] == []


def test_unlabelled_images_may_be_listed(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    raw.content["mutual"]["cases"]["un_1"] = {"source": "a"}
    raw.save()
    assert examine(capsys)[0] == 2
    (raw.folder / "imagesUn").mkdir()
    shutil.copy(raw.folder / "imagesTr" / "toy_001_0000.nii.gz", raw.folder / "imagesUn" / "un_1_0000.nii.gz")
    assert examine(capsys)[0] == 0
    shutil.copy(raw.folder / "imagesTr" / "toy_001_0000.nii.gz", raw.folder / "imagesUn")
    (raw.folder / "imagesUn" / "un_2.nii.gz").write_bytes(b"")
    status, report = examine(capsys)
    assert status == 2 and sentences(report, "error") == [
        "imagesUn/un_2.nii.gz: no channel number; nnU-Net expects CASE_0000.nii.gz (0001 for the second channel), "
        "rename it",
        "imagesUn/toy_001_0000.nii.gz: the name toy_001 is in imagesTr too; remove it here if it is the same image, "
        "else rename it",
    ]


def test_ignore_label_is_no_problem(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    raw.save(labels={**raw.content["labels"], "ignore": 4})
    raw.label("toy_001", {1: 9, 4: 5})
    assert examine(capsys)[1]["problems"] == []


def test_files_listed_in_dataset_json(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {k: {"images": [f"imagesTr/{k}_0000.nii.gz"], "label": f"labelsTr/{k}.nii.gz"} for k in DRAWN}
    raw.save(dataset=listed)
    assert examine(capsys)[1]["problems"] == []
    listed["toy_001"]["images"] = ["elsewhere/toy_001.nii.gz"]
    raw.save(dataset=listed)
    assert "elsewhere/toy_001.nii.gz: does not exist" in sentences(examine(capsys)[1], "error")[0]
    listed["toy_001"] = {"images": ["imagesTr/toy_001_0000.nii.gz"], "label": "labelsTr/typo.nii.gz"}
    raw.save(dataset=listed)
    (said,) = sentences(examine(capsys)[1], "error")
    assert said.startswith("case toy_001: ") and "labelsTr/typo.nii.gz does not exist; correct the path" in said
    raw.save(dataset={"toy_001": {"images": []}})
    with pytest.raises(MutualError, match='case "toy_001" must be'):
        check(777)


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


def region_dataset(root: Path, drawn: dict[str, list[str]], counts: dict[str, dict[int, int]]) -> RawDataset:
    raw = RawDataset(root, drawn, REGIONS)
    for key, voxels in counts.items():
        raw.label(key, voxels)
    raw.save(regions_class_order=[1, 2, 3])
    raw.declare()
    return raw


def test_regions(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {"r_1": ["whole", "core", "enhancing"], "r_2": ["whole"], "r_3": ["core"], "r_4": ["whole", "enhancing"]}
    counts = {"r_1": {1: 5, 2: 4, 3: 3}, "r_2": {1: 9}, "r_3": {2: 8}, "r_4": {1: 6, 3: 2}}
    region_dataset(nnunet_folders, drawn, counts)
    status, report = examine(capsys)
    assert status == 0
    found = sentences(report, "warning")
    assert len(found) == 2
    assert found[0].startswith("label core: 1 case(s) annotate only enhancing inside it (r_4)")
    assert found[1].startswith("label whole: 1 case(s) annotate only core inside it (r_3); nnU-Net's own evaluation")


def test_region_voxels_that_nobody_annotated(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {"r_1": ["whole", "core", "enhancing"], "r_2": ["whole"], "r_3": ["core"]}
    region_dataset(nnunet_folders, drawn, {"r_1": {1: 5, 2: 4, 3: 3}, "r_2": {1: 9, 2: 4}, "r_3": {1: 7, 2: 8}})
    found = sentences(examine(capsys)[1], "error")
    assert [text.split(",")[0] for text in found] == [
        "labelsTr/r_2.nii.gz: 4 voxel(s) of core",
        "labelsTr/r_3.nii.gz: 7 voxel(s) of whole",
    ]


SPLITS: dict[str, tuple[Any, str, str]] = {
    "patient on both sides": (
        [{"train": ["toy_001", "toy_003"], "val": ["toy_002", "toy_004", "toy_010"]}],
        "error",
        "splits_final.json, fold 0: patient p1 is on both sides (toy_001 in training, toy_002 in validation)",
    ),
    "case on both sides": (
        [{"train": list(DRAWN), "val": ["toy_010"]}],
        "error",
        "splits_final.json, fold 0: 1 case(s) are used for training and for validation: toy_010",
    ),
    "label not in training": (
        [{"train": ["toy_001", "toy_002"], "val": ["toy_003", "toy_004", "toy_010"]}],
        "error",
        "splits_final.json, fold 0: no training case annotates spleen, so this fold cannot learn it",
    ),
    "label not in validation": (
        [{"train": ["toy_003", "toy_004", "toy_010"], "val": ["toy_001", "toy_002"]}],
        "warning",
        "splits_final.json, fold 0: no validation case annotates kidney, so this fold gives no score for it (n = 0)",
    ),
    "unknown case": (
        [{"train": [*DRAWN, "toy_999"], "val": []}],
        "error",
        "splits_final.json, fold 0: 1 case(s) are not in the dataset: toy_999",
    ),
    "forgotten case": (
        [{"train": ["toy_003", "toy_004", "toy_001"], "val": ["toy_010"]}],
        "warning",
        "splits_final.json: 1 case(s) are in no fold and are never used: toy_002",
    ),
    "strange file": ([{"train": "toy_001", "val": []}], "error", "splits_final.json: expected a list of"),
    "broken file": (None, "error", "is not valid JSON"),
}


@pytest.mark.parametrize(("splits", "severity", "sentence"), SPLITS.values(), ids=SPLITS)
def test_existing_splits(
    raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], splits: Any, severity: str, sentence: str
) -> None:
    for key in ("toy_001", "toy_002"):
        entry(key, patient="p1")(raw)
    path = raw.preprocessed(tmp_path) / "splits_final.json"
    path.write_text("[" if splits is None else json.dumps(splits))
    _, report = examine(capsys)
    assert any(sentence in text for text in sentences(report, severity)), report["problems"]


def test_next_command_after_preprocessing(raw: RawDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw.preprocessed(tmp_path)
    assert check(777) == 0
    assert (
        "Next:  nnunet_mutual plan_and_preprocess -d 777 -c 3d_fullres" in capsys.readouterr().out
    )  # nothing was done
    entry("toy_001", patient="p9")(raw)
    assert check(777) == 2
    assert f"run nnunet_mutual sync {NAME}" in capsys.readouterr().out


HOPELESS: dict[str, tuple[Callable[[RawDataset], object], str]] = {
    "no dataset.json": (lambda raw: raw.json.unlink(), "has no dataset.json"),
    "broken dataset.json": (lambda raw: raw.json.write_text('{"labels": }'), "is not valid JSON: .* line 1, column 12"),
    "case twice": (
        lambda raw: raw.json.write_text(raw.json.read_text().replace('"toy_002": {"source"', '"toy_001": {"source"')),
        'lists "toy_001" twice in the same place',
    ),
    "no images": (
        lambda raw: shutil.rmtree(raw.folder / "imagesTr"),
        "imagesTr holds no image ending in .nii.gz; check",
    ),
    "no file_ending": (lambda raw: raw.save(file_ending=None), 'has no "file_ending"'),
    "unknown ending": (
        lambda raw: raw.save(file_ending=".dcm"),
        "holds no image ending in .dcm, but numbered ones ending in .nii.gz; correct",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), HOPELESS.values(), ids=HOPELESS)
def test_dataset_that_cannot_be_examined(raw: RawDataset, spoil: Callable[[RawDataset], object], message: str) -> None:
    spoil(raw)
    with pytest.raises(MutualError, match=message):
        check(777)


def test_nan_in_a_format_that_keeps_it(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = RawDataset(nnunet_folders, ending=".nrrd")
    raw.declare()
    assert examine(capsys)[1]["problems"] == []
    nan(raw)
    assert sentences(examine(capsys)[1], "error")[0].startswith("imagesTr/toy_002_0000.nrrd: 2 voxel(s) are NaN")


def test_colour_images_hold_all_channels_in_one_file(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = RawDataset(nnunet_folders, {"toy_001": ["liver"]}, {"background": 0, "liver": 1}, ending=".png")
    raw.declare()
    raw.save(channel_names={"0": "R", "1": "G", "2": "B"})
    colours = np.random.default_rng(1).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    skimage.io.imsave(raw.folder / "imagesTr" / "toy_001_0000.png", colours)
    skimage.io.imsave(raw.folder / "labelsTr" / "toy_001.png", np.eye(5, 6, dtype=np.uint8), check_contrast=False)
    assert examine(capsys)[1]["problems"] == []
    raw.save(mutual={**raw.block, "modality_groups": {"a": ["R"], "b": ["G", "B"]}})
    assert any("the channels are in one file" in text for text in sentences(examine(capsys)[1], "error"))
    raw.declare()
    assert main(["plan", "-d", "777", "--groups", "a=R", "b=G,B"]) == 2
    assert "groups need each in its own" in capsys.readouterr().err
    raw.save(channel_names={"0": "R", "1": "G"})
    assert "holds 3 channels, dataset.json has 2" in sentences(examine(capsys)[1], "error")[0]


def test_lost_label_map_is_not_taken_for_an_empty_one(raw: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    (raw.folder / "labelsTr" / "toy_003.nii.gz").unlink()
    broken_label(raw)
    assert sentences(examine(capsys)[1], "warning") == []
