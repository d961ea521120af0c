"""The raw and the preprocessed table: compared, copied, and never mixed up."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
import tiny
from raw_dataset import DRAWN, NAME, RawDataset

from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.sync import raw_and_preprocessed_differ, sync
from nnunet_mutual.errors import MutualError

KEYS = [f"case_{i:02d}" for i in range(6)]


@pytest.fixture()
def raw(nnunet_folders: Path) -> RawDataset:
    dataset = RawDataset(nnunet_folders)
    dataset.declare()
    return dataset


@pytest.fixture()
def preprocessed(raw: RawDataset, tmp_path: Path) -> Path:
    return raw.preprocessed(tmp_path) / "dataset.json"


def test_equal_tables(raw: RawDataset, preprocessed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = preprocessed.stat().st_mtime_ns
    assert raw_and_preprocessed_differ(NAME) is None
    raw.save(mutual=dict(reversed(raw.content["mutual"].items())))  # order does not matter
    assert raw_and_preprocessed_differ(NAME) is None
    sync(NAME)
    assert "equal, nothing to do" in capsys.readouterr().out
    assert preprocessed.stat().st_mtime_ns == before


def test_corrected_case_is_named_and_copied(raw: RawDataset, preprocessed: Path) -> None:
    old = preprocessed.read_bytes()
    raw.content["mutual"]["cases"]["toy_002"]["annotated"] = ["spleen"]
    raw.save(note="other")
    sentence = raw_and_preprocessed_differ("777")
    assert sentence is not None
    assert "first at cases/toy_002/annotated" in sentence
    assert sentence.endswith(f"run nnunet_mutual sync {NAME}")
    sync("777")
    after = json.loads(preprocessed.read_text())
    assert after["mutual"] == raw.block
    assert after["note"] == "kept"  # nothing but the block
    assert raw_and_preprocessed_differ("777") is None
    assert (preprocessed.parent / "dataset.json.bak-1").read_bytes() == old


def test_other_channels_of_modality_groups_need_new_data(raw: RawDataset, tmp_path: Path) -> None:
    block = raw.content["mutual"]
    raw.save(channel_names={"0": "T1", "1": "FLAIR"}, mutual=block | {"modality_groups": {"a": ["T1"], "b": ["FLAIR"]}})
    raw.content["mutual"]["cases"]["toy_002"]["missing"] = ["FLAIR"]
    raw.save()
    folder = raw.preprocessed(tmp_path)
    assert raw_and_preprocessed_differ(NAME) is None
    del raw.content["mutual"]["cases"]["toy_002"]["missing"]
    raw.save()
    assert str(raw_and_preprocessed_differ(NAME)).endswith(f"sync {NAME}")  # no data were made of it
    shutil.copytree(raw.folder / "labelsTr", folder / "gt_segmentations")
    assert str(raw_and_preprocessed_differ(NAME)).endswith(f"sync {NAME}")  # of all channels alike
    (folder / "nnUNetPlansGroups.json").write_text(json.dumps({PLANS_KEY: {}}))
    assert "channels that case toy_002 lacks" in str(raw_and_preprocessed_differ(NAME))
    with pytest.raises(MutualError, match="plan again: nnunet_mutual plan_and_preprocess -d 777$"):
        sync(NAME)


def test_table_made_after_planning(raw: RawDataset, preprocessed: Path) -> None:
    content = json.loads(preprocessed.read_text())
    del content["mutual"]
    preprocessed.write_text(json.dumps(content))
    assert "the preprocessed one does not" in str(raw_and_preprocessed_differ(NAME))
    sync(NAME)
    assert json.loads(preprocessed.read_text()) == content | {"mutual": raw.block}
    assert [path.name for path in preprocessed.parent.iterdir()] == ["dataset.json"]


def test_table_removed_from_raw(raw: RawDataset, preprocessed: Path) -> None:
    del raw.content["mutual"]
    raw.save()
    assert "the raw one no longer does" in str(raw_and_preprocessed_differ(NAME))
    sync(NAME)
    assert "mutual" not in json.loads(preprocessed.read_text())
    assert "mutual" in json.loads((preprocessed.parent / "dataset.json.bak-1").read_text())


def test_nothing_to_compare(
    raw: RawDataset, preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.declare({key: [] for key in DRAWN})
    assert raw_and_preprocessed_differ(NAME) is not None
    monkeypatch.delenv("nnUNet_raw")
    assert raw_and_preprocessed_differ(NAME) is None
    with pytest.raises(MutualError, match="nnUNet_raw is not set"):
        sync(NAME)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    preprocessed.unlink()
    assert raw_and_preprocessed_differ(NAME) is None
    with pytest.raises(MutualError, match="run nnunet_mutual plan_and_preprocess -d 777 first"):
        sync(NAME)


def test_other_labels_need_new_planning(raw: RawDataset, preprocessed: Path) -> None:
    old = preprocessed.read_bytes()
    raw.save(labels={**raw.content["labels"], "lung": 4})
    raw.declare({key: [] for key in DRAWN})
    with pytest.raises(
        MutualError, match='"labels" of the raw .* plan again: nnunet_mutual plan_and_preprocess -d 777'
    ):
        sync(NAME)
    raw.save(labels={"background": 0, "liver": 1, "spleen": 2, "kidney": 3}, channel_names={"0": "MR"})
    with pytest.raises(MutualError, match='"channel_names" of the raw'):
        sync(NAME)
    assert preprocessed.read_bytes() == old
    assert [path.name for path in preprocessed.parent.iterdir()] == ["dataset.json"]


def test_wrong_table_is_not_copied(raw: RawDataset, preprocessed: Path) -> None:
    old = preprocessed.read_bytes()
    raw.declare({"toy_001": ["livr"]})
    with pytest.raises(MutualError, match="unknown label 'livr'"):
        sync(NAME)
    assert preprocessed.read_bytes() == old


def test_unreadable_raw_table_is_an_error(raw: RawDataset, preprocessed: Path) -> None:
    raw.json.write_text("{")
    with pytest.raises(MutualError, match="dataset.json is not valid JSON"):
        raw_and_preprocessed_differ(NAME)


def test_what_planning_went_by_cannot_be_copied(raw: RawDataset, preprocessed: Path) -> None:
    before = preprocessed.read_bytes()
    raw.save(labels={**raw.content["labels"], "liver": 9})
    sentence = raw_and_preprocessed_differ(NAME)
    assert sentence is not None and '"labels" of the raw dataset.json' in sentence and "plan again" in sentence
    with pytest.raises(MutualError, match="put it back, or plan again"):
        sync(NAME)
    assert preprocessed.read_bytes() == before


@pytest.mark.parametrize("place", ["case", "source", "file of another name"])
def test_what_was_drawn_anew_is_found_wherever_it_is_said(nnunet_folders: Path, place: str) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS))
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    content = json.loads((raw / "dataset.json").read_text())
    label = raw / "labelsTr" / "case_00.nii.gz"
    if place == "file of another name":
        label = label.rename(label.with_name("drawn.nii.gz"))
        names = {key: key if key != "case_00" else "drawn" for key in KEYS}
        files = {
            k: {"images": [f"imagesTr/{k}_0000.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for k, n in names.items()
        }
        content["dataset"] = files
    block = content["mutual"]
    entry = block["sources"]["a"] if place == "source" else block["cases"]["case_00"]
    entry["annotated"] = ["liver", "spleen"]
    (raw / "dataset.json").write_text(json.dumps(content))
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(label)))
    voxels[:2, :3, :3] = 3
    tiny.write_nifti(voxels, label)
    before = (preprocessed / "dataset.json").read_bytes()
    with pytest.raises(MutualError, match=r"label maps of 1 case\(s\) \(case_00\) were drawn anew"):
        sync(901)
    assert (preprocessed / "dataset.json").read_bytes() == before


def test_the_files_that_dataset_json_lists_now_are_preprocessed(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    preprocessed = tiny.make_dataset(nnunet_folders)
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    files = {k: {"images": [f"imagesTr/{k}_0000.nii.gz"], "label": f"labelsTr/{k}.nii.gz"} for k in KEYS}
    for folder, keys in ((raw, KEYS), (preprocessed, KEYS[:-1])):
        content = json.loads((folder / "dataset.json").read_text())
        content["dataset"] = {key: files[key] for key in keys}
        (folder / "dataset.json").write_text(json.dumps(content))
    data = preprocessed / "nnUNetPlans_3d_fullres"
    for path in data.glob(f"{KEYS[-1]}*"):
        path.unlink()
    command = ["plan_and_preprocess", "-d", "901", "--as-planned", "nnUNetPlans", "-c", "3d_fullres", "-np", "1"]
    assert main(command) == 0
    assert sorted(path.stem for path in data.glob("*.pkl")) == KEYS
    assert json.loads((preprocessed / "dataset.json").read_text())["dataset"] == files


def test_what_was_drawn_anew_is_preprocessed_and_not_only_declared(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that says so beside old label maps would teach that the organ is absent."""
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS)
    preprocessed = tiny.make_dataset(nnunet_folders, block=block)
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    content = json.loads((raw / "dataset.json").read_text())
    content["mutual"]["cases"]["case_00"]["annotated"] = ["liver", "spleen"]
    (raw / "dataset.json").write_text(json.dumps(content))
    assert "run nnunet_mutual sync" in str(raw_and_preprocessed_differ(901)), (
        "what is there may have been declared late"
    )
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr" / "case_00.nii.gz")))
    voxels[:2, :3, :3] = 3
    tiny.write_nifti(voxels, raw / "labelsTr" / "case_00.nii.gz")
    said = r"label maps of 1 case\(s\) \(case_00\) were drawn anew since they were preprocessed, as the table says"
    assert re.search(said, str(raw_and_preprocessed_differ(901)))
    again = "nnunet_mutual plan_and_preprocess -d 901 --as-planned nnUNet"
    with pytest.raises(MutualError, match=f"{said}.*{again}Plans$"):
        sync(901)
    more = preprocessed / "nnUNetResEncUNetMPlans.json"
    more.write_text((preprocessed / "nnUNetPlans.json").read_text())
    with pytest.raises(MutualError, match=f"{again}Plans; {again}ResEncUNetMPlans$"):
        sync(901)
    more.unlink()
    assert (
        main(["plan_and_preprocess", "-d", "901", "--as-planned", "nnUNetPlans", "-c", "3d_fullres", "-np", "1"]) == 0
    )
    assert "Next:  nnunet_mutual train 901 3d_fullres 0 -tr TaughtPartialTrainer" in capsys.readouterr().out
    assert raw_and_preprocessed_differ(901) is None
    assert json.loads((preprocessed / "dataset.json").read_text())["mutual"] == content["mutual"]
    content["labels"] = {**content["labels"], "more": 4}
    (raw / "dataset.json").write_text(json.dumps(content))
    assert main(["plan_and_preprocess", "-d", "901", "--as-planned", "nnUNetPlans", "-c", "3d_fullres"]) == 2
    assert '"labels" of the raw dataset.json is' in capsys.readouterr().err
