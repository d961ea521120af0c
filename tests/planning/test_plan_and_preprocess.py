"""plan_and_preprocess: nnU-Net's own results, unlabelled images and folds; mistakes are found before the long work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from tiny import NAME, image_and_labels, make_dataset, two_sources, write_nifti

from nnunet_mutual.cli.parser import main
from nnunet_mutual.disk.trainings import device_option
from nnunet_mutual.planning import plan_and_preprocess as command
from nnunet_mutual.preprocessing.unlabelled import UNLABELLED
from nnunet_mutual.trainers import MutualCorrelationTrainer, PartialTrainer

KEYS = [f"case_{i:02d}" for i in range(6)]
ALL = ["liver", "tumour", "spleen"]


@pytest.fixture()
def raw(nnunet_folders: Path, few_voxels: None) -> Path:
    """A raw dataset of two sources with one unlabelled image; nnUNet_preprocessed is empty."""
    block = two_sources(["liver", "tumour"], ALL, KEYS)
    block["cases"]["case_00"]["patient"] = block["cases"]["case_01"]["patient"] = "p"
    block["cases"]["un_0"] = {"source": "a", "patient": "p"}
    preprocessed = make_dataset(nnunet_folders, block=block, configurations=())
    shutil.rmtree(preprocessed)
    folder = nnunet_folders / "nnUNet_raw" / NAME
    (folder / "imagesUn").mkdir()
    for number in range(2):
        write_nifti(image_and_labels(40 + number)[0], folder / "imagesUn" / f"un_{number}_0000.nii.gz")
    return folder


@pytest.fixture()
def preprocessed(raw: Path) -> Path:
    return raw.parent.with_name("nnUNet_preprocessed") / NAME


def undrawn(content: dict[str, Any], key: str) -> list[int]:
    """Integers of the labels that a case does not annotate."""
    block = content["mutual"]
    drawn = block["cases"][key].get("annotated", block["sources"][block["cases"][key]["source"]]["annotated"])
    return [content["labels"][label] for label in ALL if label not in drawn]


def run(*options: str) -> int:
    return main(["plan_and_preprocess", "-d", "901", *options])


def test_all_of_it(
    raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # nnU-Net's planner alone would fail
    assert run("-c", "3d_fullres", "-np", "1") == 0
    shown = capsys.readouterr().out
    data = "nnUNetPlans_3d_fullres"
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(preprocessed / data))) == KEYS
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(preprocessed / UNLABELLED / data))) == ["un_0", "un_1"]
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    assert len(splits) == 5 and sorted(key for fold in splits for key in fold["val"]) == KEYS
    assert any({"case_00", "case_01"} <= set(fold["val"]) for fold in splits)
    rows = [line.split() for line in shown.split("\n")]
    with_patient = ["1" if "case_00" in fold["val"] else "2" for fold in splits]
    assert ["unlabelled", *with_patient] in rows and with_patient.count("1") == 1
    assert ["patients", *("0/1" if one == "1" else "1/0" for one in with_patient)] in rows
    assert "every label in every fold where possible, cases of a patient together" in shown
    assert [
        "Next:",
        "nnunet_mutual",
        "train",
        "901",
        "3d_fullres",
        "0",
        "-tr",
        "MeanTeacherTrainer",
        *device_option().split(),
    ] in rows
    assert (preprocessed / "gt_segmentations" / "case_00.nii.gz").is_file()

    first = {path: path.stat().st_mtime_ns for path in (preprocessed / UNLABELLED).rglob("*.b2nd")}
    splits = [{"train": KEYS[2:], "val": KEYS[:2]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    assert run("-c", "3d_fullres", "3d_lowres", "-np", "1") == 0
    shown = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert "as" in shown and "splits_final.json says (delete it to get new ones)" in shown
    assert json.loads((preprocessed / "splits_final.json").read_text()) == splits
    assert ["cases", "4/2"] in [line.split() for line in shown.split("\n")]


def test_another_spacing_has_data_of_its_own(raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-c", "3d_fullres", "-np", "1") == 0
    before = {path: path.stat().st_mtime_ns for path in preprocessed.rglob("*.b2nd")}
    assert main(["plan", "-d", "901", "--name", "coarse", "--spacing", "2", "2", "2"]) == 0
    command = capsys.readouterr().out.split("Next, data of this spacing: nnunet_mutual ")[1].split()
    assert main([*command, "-np", "1"]) == 0
    shown = capsys.readouterr().out
    data = "nnUNetPlans_3d_fullres_coarse"
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(preprocessed / data))) == KEYS
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(preprocessed / UNLABELLED / data))) == ["un_0", "un_1"]
    fine, coarse = (
        nnUNetDatasetBlosc2(str(preprocessed / name)).load_case(KEYS[0])[0].shape
        for name in ("nnUNetPlans_3d_fullres", data)
    )
    assert coarse == (1, *(round(n / 2) for n in fine[1:]))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "Next:  nnunet_mutual train 901 3d_fullres_coarse 0 -tr MeanTeacherTrainer" in shown

    # nnU-Net's own option would replace the data of nnUNetPlans
    assert run("-overwrite_target_spacing", "2", "2", "2", "-np", "1") == 2
    assert "add -overwrite_plans_name nnUNetPlansOther, to keep both" in capsys.readouterr().err
    spacing = ["-overwrite_target_spacing", "2", "2", "2", "-overwrite_plans_name", "nnUNetPlans_2mm"]
    assert run(*spacing, "--no_pp", "-npfp", "1", "-pl", "nnUNetPlannerResEncM") == 0
    assert "Next:  nnunet_mutual plan_and_preprocess -d 901 --as-planned nnUNetPlans_2mm" in capsys.readouterr().out
    planned = json.loads((preprocessed / "nnUNetPlans_2mm.json").read_text())["configurations"]["3d_fullres"]
    assert planned["spacing"] == [2, 2, 2]
    assert planned["data_identifier"] == "nnUNetPlans_2mm_3d_fullres"  # nnU-Net's planner would share that of 1 mm
    assert not (preprocessed / "nnUNetPlans_2mm_3d_fullres").exists()


def test_plans_are_not_replaced_by_others(
    raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("-overwrite_target_spacing", "2", "2", "2", "--no_pp", "-np", "1") == 0
    path = preprocessed / "nnUNetPlans.json"
    planned, content = path.read_text(), json.loads(path.read_text())
    for options in ([], ["-overwrite_target_spacing", "1", "2", "2"]):
        assert run("--no_pp", "-np", "1", *options) == 2
        said = capsys.readouterr().err
        assert "nnUNetPlans.json was planned with another spacing or preprocessor" in said
        assert "or delete nnUNetPlans.json, to replace them" in said and path.read_text() == planned
    assert run("-overwrite_target_spacing", "2", "2", "2", "--no_pp", "-np", "1") == 0
    for key in ("preprocessor_name", "transpose_backward"):
        spoilt = json.loads(json.dumps(content))
        del (spoilt if key in spoilt else spoilt["configurations"]["3d_fullres"])[key]
        path.write_text(json.dumps(spoilt))
        assert run("--no_pp", "-np", "1") == 2
        assert f'has no "{key}"; correct it, or plan again with' in capsys.readouterr().err

    def too_late(*_: Any, **__: Any) -> None:
        raise AssertionError("files were read")

    monkeypatch.setattr(command, "examine", too_late)
    content["configurations"]["3d_fullres"]["mutual"] = {"planned": {"settings": {}}}
    path.write_text(json.dumps(content))
    assert run("--as-planned", "nnUNetPlans", "-c", "3d_fullres", "-np", "1") == 2
    assert 'must be an object with "trainer" and "settings", as planners write it' in capsys.readouterr().err
    assert run("--as-planned", "nnUNetPlans", "-c", "3d_fullres", "-np", "1", "1") == 2
    assert "-np 1 1: give one number of processes" in capsys.readouterr().err
    path.unlink()
    assert run("--no_pp", "-np", "1", "--no-check") == 0
    assert run("--no_pp", "-np", "1", "--no-check") == 0, "the same again is no other"


STOCK_OPTIONS: dict[str, tuple[list[str], str]] = {
    "two numbers": (
        ["-overwrite_target_spacing", "1", "1"],
        "takes three numbers in mm (slices, rows, columns), got 2",
    ),
    "no preprocessor": (
        ["-preprocessor_name", "Mine"],
        "no preprocessor called 'Mine'; its own is Default",
    ),
    "a name that nothing finds": (["-overwrite_plans_name", "mine"], "with 'Plans' among them, such as"),
    "a name of two parts": (["-overwrite_plans_name", "nnUNetPlans__a"], "with 'Plans' among them, such as"),
    "plans that are not there": (["--as-planned", "nnUNetPlans"], "nnUNetPlans.json does not exist; plans of"),
    "planning as planned": (["--as-planned", "nnUNetPlans", "--no_pp"], "plans nothing, so leave --no_pp out"),
}


@pytest.mark.parametrize(("options", "said"), STOCK_OPTIONS.values(), ids=STOCK_OPTIONS)
def test_stock_options_that_are_wrong(
    raw: Path, preprocessed: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options) == 2
    assert said in capsys.readouterr().err
    assert not preprocessed.exists() or not list(preprocessed.iterdir())


def test_planned_for_a_trainer(
    raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    content["labels"]["ignore"] = 4
    (raw / "dataset.json").write_text(json.dumps(content))
    for key in KEYS:  # a corner of metal that nobody drew
        image, labels = image_and_labels(1)
        image[:5, :5, :5], labels[:5, :5, :5] = 3000, 4
        labels[np.isin(labels, undrawn(content, key))] = 0
        write_nifti(image, raw / "imagesTr" / f"{key}_0000.nii.gz")
        write_nifti(labels, raw / "labelsTr" / f"{key}.nii.gz")
    options = ["-c", "3d_fullres", "-np", "1", "--for", "MutualCorrelationTrainer", "-gpu_memory_target", "6"]
    assert run(*options) == 0
    shown = capsys.readouterr().out
    assert "Planned for MutualCorrelationTrainer on a GPU of 6 GB" in shown
    assert "nnunet_mutual train 901 3d_fullres 0 -tr MutualCorrelationTrainer -p nnUNetMutualPlans" in shown
    fingerprint = json.loads((preprocessed / "dataset_fingerprint.json").read_text())
    assert fingerprint["foreground_intensity_properties_per_channel"]["0"]["max"] < 10
    plans = json.loads((preprocessed / "nnUNetMutualPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["mutual"]["planned"]["settings"] == {"memory": "joint"}
    plans["continue_training"] = False
    (raw.parent.with_name("nnUNet_results")).mkdir(exist_ok=True)
    for trainer_class in (MutualCorrelationTrainer, PartialTrainer):
        trainer = trainer_class(plans, "3d_fullres", 0, content, torch.device("cpu"))
        assert getattr(trainer.settings, "memory", "joint") == "joint"


def test_empty_label_maps(raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in KEYS:
        write_nifti(np.zeros((16, 20, 18), np.uint8), raw / "labelsTr" / f"{key}.nii.gz")
    assert run("-c", "3d_fullres", "-np", "1") == 2
    shown = capsys.readouterr().err.split("error: ")[-1]
    assert "the label maps of all 6 training case(s) of Dataset901_Tiny are empty" in shown
    assert not preprocessed.exists()


def test_failures_of_nnunet_become_one_sentence(
    raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("Some background worker is 6 feet under. Yuck.\nmore")

    monkeypatch.setattr(command, "extract_fingerprint_dataset", killed)
    assert run() == 2
    before, sentence = capsys.readouterr().err.split("error: ")
    assert "Traceback" not in before
    assert "nnU-Net's fingerprint extraction of Dataset901_Tiny stopped with RuntimeError: Some background" in sentence
    assert "nnunet_mutual check Dataset901_Tiny examines every file, NNUNET_MUTUAL_TRACEBACK=1 in front" in sentence


def splits(content: Any) -> Callable[[Path, Path], None]:
    def write(raw: Path, preprocessed: Path) -> None:
        (raw / "splits_final.json").write_text(json.dumps(content))

    return write


def two_splits(raw: Path, preprocessed: Path) -> None:
    splits([{"train": KEYS[2:], "val": KEYS[:2]}])(raw, preprocessed)
    preprocessed.mkdir()
    (preprocessed / "splits_final.json").write_text("[]")


def old_fingerprint(raw: Path, preprocessed: Path) -> None:
    preprocessed.mkdir()
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1, 1]] * 4}))


def half_written(name: str) -> Callable[[Path, Path], None]:
    def change(raw: Path, preprocessed: Path) -> None:
        preprocessed.mkdir()
        (preprocessed / name).write_text('{"spacings": [[1')

    return change


def stock_fingerprint(raw: Path, preprocessed: Path) -> None:
    old_fingerprint(raw, preprocessed)
    content = json.loads((raw / "dataset.json").read_text())
    content["labels"]["ignore"] = 4
    (raw / "dataset.json").write_text(json.dumps(content))


def block_without(key: str) -> Callable[[Path, Path], None]:
    def change(raw: Path, preprocessed: Path) -> None:
        content = json.loads((raw / "dataset.json").read_text())
        del content["mutual"]["cases"][key]
        (raw / "dataset.json").write_text(json.dumps(content))

    return change


def no_label(raw: Path, preprocessed: Path) -> None:
    (raw / "labelsTr" / "case_03.nii.gz").unlink()


def same_name(raw: Path, preprocessed: Path) -> None:
    shutil.copy(raw / "imagesTr" / "case_03_0000.nii.gz", raw / "imagesUn")


def fine(raw: Path, preprocessed: Path) -> None:
    """The dataset is fine, the options are not."""


BAD: dict[str, tuple[Callable[[Path, Path], None], list[str], str]] = {
    "unknown planner": (fine, ["-pl", "nnUNetPlannerResEncS"], "did you mean 'nnUNetPlannerResEnc"),
    "not a planner": (fine, ["-pl", "ANISO_THRESHOLD"], "no planner is called 'ANISO_THRESHOLD'"),
    "a class of another kind": (fine, ["-pl", "DatasetFingerprintExtractor"], "no planner is called 'DatasetFing"),
    "misspelt configuration": (fine, ["-c", "3d_fulres"], "'3d_fulres' (did you mean '3d_fullres'?); known are: 2d"),
    "numbers of processes": (fine, ["-c", "2d", "-np", "2", "2"], "-np 2 2: give one number of processes, or one for"),
    "no process": (fine, ["-np", "0"], "-np: it must be a whole number from 1"),
    "no memory": (fine, ["-gpu_memory_target", "0"], "-gpu_memory_target: it must be a positive number"),
    "unknown trainer": (fine, ["--for", "MutualPartailTrainer"], "did you mean 'MutualPartialTrainer'?"),
    "unknown setting": (fine, ["--for", "MeanTeacherTrainer", "--set", "peers=2"], 'unknown setting "peers" of --set'),
    "no groups": (fine, ["--for", "MutualCrossModalTrainer"], "dataset.json declares no modality group(s)"),
    "planner of nnU-Net": (
        fine,
        ["-pl", "ExperimentPlanner", "--set", "memory=joint"],
        "ExperimentPlanner plans for one network whatever --for and --set say; plan with -pl MutualPlanner",
    ),
    "ignored voxels in the fingerprint": (stock_fingerprint, [], "counts ignored voxels as foreground; add --clean"),
    "half a fingerprint": (
        half_written("dataset_fingerprint.json"),
        [],
        "to its end or was changed; add --clean",
    ),
    "half of the plans": (
        half_written("nnUNetPlans.json"),
        [],
        "column 17; correct it, or delete it",
    ),
    "old fingerprint": (old_fingerprint, [], "made from 4 training case(s), now there are 6; add --clean"),
    "patient on both sides": (
        splits([{"train": KEYS[1:], "val": KEYS[:1]}]),
        [],
        "splits_final.json, fold 0: patient p is on both sides",
    ),
    "folds of other cases": (splits([{"train": ["x"], "val": KEYS}]), [], "1 case(s) are not in the dataset: x"),
    "no folds": (splits({"train": KEYS}), [], 'expected a list of {"train": [...], "val": [...]}'),
    "two kinds of folds": (two_splits, [], "differ; delete the one that you do not want to train with"),
    "unlisted case": (block_without("case_02"), [], "1 case(s) are not listed in"),
    "label map missing": (no_label, [], "labelsTr/case_03.nii.gz: the label map of case case_03 is missing"),
    "one name twice": (same_name, [], "imagesUn/case_03_0000.nii.gz: the name case_03 is in imagesTr too"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_sentence_before_anything_is_done(
    raw: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def too_late(*_: Any, **__: Any) -> None:
        raise AssertionError("nnU-Net was started")

    monkeypatch.setattr(command, "extract_fingerprint_dataset", too_late)
    spoil, options, sentence = BAD[kind]
    spoil(raw, preprocessed)
    before = sorted(preprocessed.parent.rglob("*"))
    assert run(*options) == 2
    shown = capsys.readouterr().err.split("error: ")[-1]
    assert sentence in shown and "\n" not in shown.strip()
    assert sorted(preprocessed.parent.rglob("*")) == before
