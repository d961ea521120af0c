"""Modality groups: how they are declared, and that each looks in training as it does alone at inference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modalities import CHANNELS, GROUPS, make_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny import NAME

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.modality_groups import (
    ModalityGroups,
    parse_modality_groups,
    require_preprocessed_by_group,
)
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import main
from nnunet_mutual.errors import MutualError
from nnunet_mutual.preprocessing.by_group import present_channels
from nnunet_mutual.preprocessing.unlabelled import UNLABELLED

PLANS = "nnUNetPlansGroups"


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset.json").read_text())


def groups_of(folder: Path) -> ModalityGroups:
    return ModalityGroups.of(AnnotationTable.from_dataset_json(content_of(folder)))


def test_where_the_channels_of_a_group_lie(nnunet_folders: Path) -> None:
    groups = groups_of(make_raw(nnunet_folders, groups={"both": ["FLAIR", "T1"], "F": ["FLAIR"]}))
    assert groups.channels == {"both": (0, 1), "F": (1,)}  # in dataset.json's order, whatever the group's
    assert groups.stored == {"both": slice(0, 2), "F": slice(2, 3)}
    assert groups.described() == {"both": ["T1", "FLAIR"], "F": ["FLAIR"]}
    lacking = Case("x", "a", frozenset(), missing=frozenset({"T1"}))
    assert groups.available(lacking) == [False, True]
    assert groups.available(Case("x", "a", frozenset())) == [True, True]


def test_the_command_writes_the_groups(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = make_raw(nnunet_folders, groups=None)
    assert main(["plan", "-d", "901", "--groups", "T1=T1", "FLAIR=FLAIR", "both=FLAIR,T1"]) == 0
    block = content_of(raw)["mutual"]
    assert block["modality_groups"] == GROUPS and list(block["modality_groups"]) == list(GROUPS)
    assert block["cases"]["case_00"] == {"source": NAME} and len(block["cases"]) == 6
    assert "nnunet_mutual check 901" in capsys.readouterr().out
    assert main(["plan", "-d", "901", "--groups", "T1=T1", "FLAIR=FLAIR"]) == 0  # a table that is there is kept
    assert content_of(raw)["mutual"] == {**block, "modality_groups": {"T1": ["T1"], "FLAIR": ["FLAIR"]}}
    assert len(list(raw.glob("dataset.json.bak-*"))) == 1


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (["T1=T1"], "two are needed"),
        (["T1=T1", "T2=T2"], "unknown channel 'T2'"),
        (["T1=T1", "T1=FLAIR"], "given twice"),
        (["T1=T1", "again=T1"], "have the same channels"),
        (["T1"], "not of the form"),
        (["T1=", "F=FLAIR"], "not of the form"),
        (["a/b=T1", "F=FLAIR"], "letters and digits"),
    ],
)
def test_wrong_groups_change_nothing(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str], entries: list[str], says: str
) -> None:
    raw = make_raw(nnunet_folders, groups=None)
    before = (raw / "dataset.json").read_bytes()
    assert main(["plan", "-d", "901", "--groups", *entries]) == 2
    assert says in capsys.readouterr().err
    assert (raw / "dataset.json").read_bytes() == before


def test_groups_are_not_settings(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_raw(nnunet_folders, groups=None)
    assert main(["plan", "-d", "901", "--groups", "T1=T1", "F=FLAIR", "--name", "x"]) == 2
    assert "run the command twice" in capsys.readouterr().err
    assert main(["plan", "-d", "901"]) == 2
    assert "--name" in capsys.readouterr().err
    assert parse_modality_groups(["T1=T1", "b=FLAIR, T1"], list(CHANNELS.values())) == {
        "T1": ["T1"],
        "b": ["T1", "FLAIR"],
    }


def preprocessed_alone(raw: Path, plans: dict[str, Any], key: str, channels: tuple[int, ...]) -> np.ndarray:
    """What nnU-Net's preprocessor makes of these channels alone, with the bounding box in the properties."""
    one = json.loads(json.dumps(plans))
    for configuration in one["configurations"].values():
        for entry in ("normalization_schemes", "use_mask_for_norm"):
            if entry in configuration:
                configuration[entry] = [configuration[entry][c] for c in channels]
    intensities = one["foreground_intensity_properties_per_channel"]
    one["foreground_intensity_properties_per_channel"] = {str(i): intensities[str(c)] for i, c in enumerate(channels)}
    manager = PlansManager(one)
    folder = raw / ("imagesTr" if key.startswith("case") else "imagesUn")
    files = [str(folder / f"{key}_{c:04d}.nii.gz") for c in channels]
    configuration = manager.get_configuration("3d_fullres")
    data, _, properties = DefaultPreprocessor(verbose=False).run_case(files, None, manager, configuration, {})
    whole = np.zeros((len(channels), *properties["shape_before_cropping"]), np.float32)
    box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
    whole[(slice(None), *box)] = data
    return whole


@pytest.mark.usefixtures("few_voxels", "spawned_pools")
def test_a_group_looks_as_it_does_alone(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At native spacing the voxels are those of stock preprocessing of the group's channels, to the last bit."""
    raw = make_raw(nnunet_folders, missing={"case_00": "T1", "un_1": "FLAIR"})
    assert main(["plan_and_preprocess", "-d", "901", "-c", "3d_fullres", "-np", "1"]) == 0
    assert "-p nnUNetPlansGroups" in capsys.readouterr().out
    folder = nnunet_folders / "nnUNet_preprocessed" / NAME
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    assert plans["modality_groups"] == GROUPS
    groups = groups_of(folder)
    cases = {"case": folder / f"{PLANS}_3d_fullres", "un": folder / UNLABELLED / f"{PLANS}_3d_fullres"}

    def load(key: str) -> tuple[np.ndarray, dict[str, Any]]:
        data, _, _, properties = nnUNetDatasetBlosc2(str(cases[key.split("_")[0]]), [key]).load_case(key)
        return data[:], properties

    for key in ("case_01", "un_0"):
        data, properties = load(key)
        assert data.shape[0] == 4  # T1, FLAIR, and both
        whole = np.zeros((4, *properties["shape_before_cropping"]), np.float32)
        box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
        whole[(slice(None), *box)] = data
        for name, place in groups.stored.items():
            np.testing.assert_array_equal(whole[place], preprocessed_alone(raw, plans, key, groups.channels[name]))
        assert not np.array_equal(whole[0], whole[2])  # T1 alone and T1 of both have other boxes, hence statistics
    # A declared gap is zero, and FLAIR's file is not taken for T1.
    without_t1, without_flair = load("case_00")[0], load("un_1")[0]
    assert [channel.any() for channel in without_t1] == [False, True, False, True]
    assert [channel.any() for channel in without_flair] == [True, False, True, False]
    there = preprocessed_alone(raw, plans, "case_00", (1,))[0]
    np.testing.assert_array_equal(without_t1[1], there[:, :, : without_t1.shape[3]])


def test_an_undeclared_gap_stops_before_anything_is_done(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_raw(nnunet_folders)
    (raw / "imagesUn" / "un_0_0001.nii.gz").unlink()
    assert main(["plan_and_preprocess", "-d", "901", "-c", "3d_fullres"]) == 2
    assert "case un_0 has no image of channel FLAIR" in capsys.readouterr().err
    assert not (nnunet_folders / "nnUNet_preprocessed" / NAME).exists()


def test_some_case_must_be_complete(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_raw(nnunet_folders, cases=2, unlabelled=0, missing={"case_00": "T1", "case_01": "FLAIR"})
    assert main(["plan_and_preprocess", "-d", "901", "-c", "3d_fullres"]) == 2
    assert "no training case" in capsys.readouterr().err


def test_names_that_do_not_say_the_channel(nnunet_folders: Path) -> None:
    raw = make_raw(nnunet_folders)
    content = content_of(raw)
    table = AnnotationTable.from_dataset_json(content)
    assert present_channels(["/x/t1.nii.gz", "/x/flair.nii.gz"], content, table) == {0: 0, 1: 1}
    lacking = AnnotationTable.from_dataset_json(
        {**content, "mutual": {**content["mutual"], "cases": {"pat": {"source": "a", "missing": ["FLAIR"]}}}}
    )
    for files in (["t1.nii.gz", "flair.nii.gz"], ["c_0000.nii.gz", "c_0001.nii.gz"], ["c_0000.nii.gz"]):
        assert present_channels([f"/x/{name}" for name in files], content, lacking, "pat") == {0: 0}
    with pytest.raises(MutualError, match="do not say which"):
        present_channels(["/x/t1.nii.gz"], content, table)


def test_plans_of_other_groups_are_refused(nnunet_folders: Path) -> None:
    groups = groups_of(make_raw(nnunet_folders))
    with pytest.raises(MutualError, match="not preprocessed by modality group"):
        require_preprocessed_by_group({"plans_name": "nnUNetPlans"}, groups, 901)
    other = {"plans_name": PLANS, "modality_groups": {"T1": ["T1"], "FLAIR": ["FLAIR"]}}
    with pytest.raises(MutualError, match=r"other modality groups \(T1=T1 FLAIR=FLAIR\)"):
        require_preprocessed_by_group(other, groups, 901)
    require_preprocessed_by_group({**other, "modality_groups": GROUPS}, groups, 901)


def test_a_group_is_not_called_like_a_folder_of_results(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What validation_full holds are nnU-Net's whole predictions."""
    make_raw(nnunet_folders, groups=None)
    assert main(["plan", "-d", "901", "--groups", "T1=T1", "full=T1,FLAIR"]) == 2
    assert "a group called full would have its results where" in capsys.readouterr().err
