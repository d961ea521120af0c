"""Who is scored: patients of a fold, or another dataset, whose integers may differ; nobody on both sides."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from raw_dataset import LABELS, RawDataset

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.datasets.next_step import Contents
from nnunet_mutual.disk.locate import locate
from nnunet_mutual.errors import MutualError
from nnunet_mutual.trial import both_sides, scoring
from nnunet_mutual.trial.arms import fitting_arms
from nnunet_mutual.trial.held_out import divide, require_shown, score_on, write_dataset
from nnunet_mutual.trial.raw_data import Division, RawData
from nnunet_mutual.trial.scoring import measure, predict
from nnunet_mutual.trial.training_data import _require_sound

DRAWN = {f"toy_{n}": list(LABELS)[1:] for n in range(6)}


def read(name: str) -> RawData:
    return RawData.read(locate(name, need_raw=True))


@pytest.fixture()
def toy(nnunet_folders: Path) -> RawDataset:
    found = RawDataset(nnunet_folders, DRAWN)
    cases = {key: {"source": "a", "patient": f"p{n // 2}"} for n, key in enumerate(DRAWN)}
    found.declare()
    found.save(mutual={"version": 1, "sources": {"a": {"annotated": list(LABELS)[1:]}}, "cases": cases})
    found.preprocessed(nnunet_folders)
    return found


def test_the_split_is_honoured_and_patients_stay_together(toy: RawDataset, nnunet_folders: Path) -> None:
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / "Dataset777_Toy"
    (toy.folder / "imagesUn").mkdir()
    for key, patient in (("un_0", "p1"), ("un_1", "p2")):
        toy.content["mutual"]["cases"][key] = {"source": "a", "patient": patient}
        sitk.WriteImage(
            sitk.GetImageFromArray(np.zeros((4, 5, 6))), str(toy.folder / "imagesUn" / f"{key}_0000.nii.gz")
        )
    toy.save()
    split = [{"train": ["toy_0", "toy_1", "toy_4", "toy_5"], "val": ["toy_2", "toy_3"]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(split))
    found = divide(read("777"), preprocessed, "0")
    assert list(found.training) == split[0]["train"] and list(found.scored) == split[0]["val"]
    assert list(found.unlabelled) == ["un_1"]  # un_0 is of a scored patient
    assert {*found.source.patients(list(found.scored)).values()} == {"patient p1"}
    write_dataset(nnunet_folders / "nnUNet_raw" / "Dataset778_Part", found.source, found.training, found.unlabelled)
    part = read("778")
    assert list(part.training) == split[0]["train"] and list(part.unlabelled) == ["un_1"]
    assert set(part.table.cases) == {*split[0]["train"], "un_1"}
    assert fitting_arms(Contents(part.table, list(part.training), True))[1] == "MeanTeacherTrainer"


def test_what_is_drawn_in_part_is_not_scored_and_said(toy: RawDataset, nnunet_folders: Path) -> None:
    cases = toy.content["mutual"]["cases"]
    cases["toy_2"] |= {"annotated": ["liver", "kidney"], "incomplete": ["spleen"]}
    cases["toy_3"] |= {"annotated": [], "incomplete": ["spleen"]}
    cases["toy_5"]["patient"] = "p3"
    toy.save()
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / "Dataset777_Toy"
    split = [{"train": ["toy_0", "toy_1", "toy_5"], "val": ["toy_2", "toy_3", "toy_4"]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(split))
    found = divide(read("777"), preprocessed, "0")
    assert list(found.scored) == ["toy_2", "toy_4"], "of toy_3 nothing can be scored"
    held_out = replace(found.source, training=found.scored)
    scores = measure(toy.folder / "labelsTr", held_out)["dice"]
    assert scores == {"toy_2": {"liver": 1, "spleen": None, "kidney": 1}, "toy_4": dict.fromkeys(DRAWN["toy_4"], 1)}
    assert held_out.unscored_in_part() == "; drawn in part, so not scored there: spleen in 1 of them"
    table = found.source.table
    whole, in_part, left_out = (Contents(table, [key], False) for key in ("toy_0", "toy_2", "toy_3"))
    assert [(one.partial, one.leaves_out) for one in (whole, in_part, left_out)] == [
        (False, False),
        (True, False),
        (True, True),
    ]


def other(root: Path, **more: object) -> RawDataset:
    """Another hospital with integers of its own and one label more; images that are not those of the first one."""
    labels = {"background": 0, "lung": 1, "kidney": 2, "liver": 3, "spleen": 4}
    found = RawDataset(root, {f"new_{n}": list(labels)[1:] for n in range(2)}, labels, name="Dataset778_New")
    for n in range(2):
        found.image(f"new_{n}", np.random.default_rng(50 + n).normal(size=(4, 5, 6)))
    found.save(**more)
    return found


def test_another_dataset_is_translated(toy: RawDataset, nnunet_folders: Path) -> None:
    other(nnunet_folders)
    found = score_on(read("777"), read("778"))
    assert list(found.training) == list(DRAWN) and list(found.scored) == ["new_0", "new_1"]
    place = nnunet_folders / "held_out"
    write_dataset(place, found.source, found.scored, {}, toy.content["labels"])
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(place / "labelsTr" / "new_0.nii.gz")))
    assert {int(v): int((voxels == v).sum()) for v in np.unique(voxels)} == {0: 30, 1: 30, 2: 40, 3: 20}
    assert json.loads((place / "dataset.json").read_text())["labels"] == LABELS


def test_translated_cases_keep_their_patients(toy: RawDataset, nnunet_folders: Path) -> None:
    new = other(nnunet_folders)
    cases = {f"new_{n}": {"source": "b", "patient": "q0"} for n in range(2)}
    drawn = list(new.content["labels"])[1:]
    new.save(mutual={"version": 1, "sources": {"b": {"annotated": drawn}}, "cases": cases, "may_overlap": []})
    found = score_on(read("777"), read("778"))
    place = nnunet_folders / "held_out"
    write_dataset(place, found.source, found.scored, {}, toy.content["labels"])
    table = AnnotationTable.from_dataset_json(json.loads((place / "dataset.json").read_text()))
    assert {case.patient for case in table.cases.values()} == {"q0"}
    assert all(case.annotated == {*LABELS} - {"background"} for case in table.cases.values())


def test_nobody_is_on_both_sides(toy: RawDataset, nnunet_folders: Path) -> None:
    new = other(nnunet_folders)
    labels = list(new.content["labels"])[1:]
    cases = {f"new_{n}": {"source": "b", "patient": f"p{2 + n}"} for n in range(2)}
    new.save(mutual={"version": 1, "sources": {"b": {"annotated": labels}}, "cases": cases})
    with pytest.raises(
        MutualError,
        match="patient p2 would be trained on and scored, .* from Dataset777_Toy or from",
    ):
        score_on(read("777"), read("778"))
    del new.content["mutual"]
    new.save()
    same = sitk.Cast(sitk.ReadImage(str(toy.folder / "imagesTr" / "toy_3_0000.nii.gz")) * 100, sitk.sitkInt16)
    sitk.WriteImage(same, str(toy.folder / "imagesTr" / "toy_3_0000.nii.gz"))
    sitk.WriteImage(same + 1024, str(new.folder / "imagesTr" / "new_1_0000.nii.gz"), useCompression=False)
    with pytest.raises(MutualError, match="new_1_0000.nii.gz is the same image as .*toy_3_0000.nii.gz"):
        score_on(read("777"), read("778"))
    for path in (toy.folder / "imagesTr" / "toy_3_0000.nii.gz", new.folder / "imagesTr" / "new_1_0000.nii.gz"):
        sitk.WriteImage(same * 0, str(path))  # as for a channel that is missing
    score_on(read("777"), read("778"))
    new.save(
        mutual={"version": 1, "sources": {"b": {"annotated": ["liver"]}}, "cases": {k: {"source": "b"} for k in cases}}
    )
    with pytest.raises(MutualError, match="its case new_0 does not draw spleen, kidney"):
        score_on(read("777"), read("778"))


def test_nobody_is_on_both_sides_of_a_fold(toy: RawDataset, nnunet_folders: Path) -> None:
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / "Dataset777_Toy"

    def refused(train: list[int], val: list[int], sentence: str) -> None:
        split = {"train": [f"toy_{n}" for n in train], "val": [f"toy_{n}" for n in val]}
        (preprocessed / "splits_final.json").write_text(json.dumps([split]))
        with pytest.raises(MutualError, match=f"{sentence}.*splits_final.json, or delete it to get new folds"):
            divide(read("777"), preprocessed, "0")

    refused([0, 1, 2, 3], [3, 4], "case toy_3 would be trained on and scored")
    refused([0, 1, 2], [3, 4, 5], "patient p1 would be trained on and scored")
    same = sitk.ReadImage(str(toy.folder / "imagesTr" / "toy_0_0000.nii.gz"))
    sitk.WriteImage(same, str(toy.folder / "imagesTr" / "toy_5_0000.nii.gz"))
    refused([0, 1], [4, 5], "toy_5_0000.nii.gz is the same image as .*toy_0_0000.nii.gz")


def test_images_whose_header_says_nothing_are_compared_by_their_voxels(
    toy: RawDataset, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = other(nnunet_folders)
    shutil.copy(toy.folder / "imagesTr" / "toy_3_0000.nii.gz", new.folder / "imagesTr" / "new_1_0000.nii.gz")

    def refuses(path: Path, reader: object) -> None:
        raise RuntimeError("ITK only supports orthonormal direction cosines")

    monkeypatch.setattr(both_sides, "read_header", refuses)
    with pytest.raises(MutualError, match="new_1_0000.nii.gz is the same image as"):
        score_on(read("777"), read("778"))


def test_somebody_must_have_drawn_something(toy: RawDataset, nnunet_folders: Path) -> None:
    new = other(nnunet_folders)
    for n in range(2):
        sitk.WriteImage(
            sitk.GetImageFromArray(np.full((4, 5, 6), 1, np.uint8)), str(new.folder / "labelsTr" / f"new_{n}.nii.gz")
        )
    found = score_on(read("777"), read("778"))
    with pytest.raises(MutualError, match=r"no label that is annotated has .* of the 2 case\(s\) of Dataset778_New"):
        require_shown(found, toy.content["labels"])  # lung is none of its labels
    require_shown(found, new.content["labels"])
    cases = {f"new_{n}": {"source": "b", "annotated": ["liver"], "incomplete": ["lung"]} for n in range(2)}
    new.save(mutual={"version": 1, "sources": {"b": {"annotated": ["liver"]}}, "cases": cases})
    part = read("778")
    with pytest.raises(MutualError, match="no label that is annotated has a voxel"):  # lung has no Dice there
        require_shown(Division({}, {}, part.training, part), new.content["labels"])


def test_another_dataset_is_examined_before_anything_is_trained(toy: RawDataset, nnunet_folders: Path) -> None:
    new = other(nnunet_folders)
    sitk.WriteImage(
        sitk.GetImageFromArray(np.full((4, 5, 6), 9, np.uint8)), str(new.folder / "labelsTr" / "new_1.nii.gz")
    )
    with pytest.raises(MutualError, match=r"--test Dataset778_New: .*new_1.* 9.*nnunet_mutual check Dataset778_New"):
        _require_sound(locate("778", need_raw=True))


def test_a_tif_keeps_the_file_that_says_its_spacing(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = nnunet_folders / "nnUNet_raw" / "Dataset779_Tif"
    for name, voxels in (("imagesTr/c_1_0000.tif", np.zeros((8, 9, 10), np.float32)), ("labelsTr/c_1.tif", drawn())):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(raw / name, voxels)
        (raw / name).with_name("c_1.json").write_text(json.dumps({"spacing": [3.0, 1.0, 1.0]}))
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "lesion": 1}, "numTraining": 1}
    (raw / "dataset.json").write_text(
        json.dumps(content | {"file_ending": ".tif", "overwrite_image_reader_writer": "Tiff3DIO"})
    )
    held_out = read("779")
    predictor = SimpleNamespace(predict_single_npy_array=lambda *_: drawn())
    monkeypatch.setattr(scoring, "open_predictor", lambda *_: predictor)
    predict(raw, "0", held_out, raw / "predicted", torch.device("cpu"), print)
    assert sorted(path.name for path in (raw / "predicted").iterdir()) == ["c_1.json", "c_1.tif"]
    assert measure(raw / "predicted", held_out)["dice"] == {"c_1": {"lesion": 1.0}}


def drawn() -> np.ndarray:
    voxels = np.zeros((8, 9, 10), np.uint8)
    voxels[1:3, 1:3, 1:3] = 1
    return voxels
