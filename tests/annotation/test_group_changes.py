"""Modality groups, and what cases lack, change after preprocessing: nothing learns from data of the old ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from modalities import CHANNELS, make_preprocessed, make_raw, two_channels
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from training import SHORT, trainer_for

from nnunet_mutual.annotation.group_notes import grouped_otherwise, note_groups
from nnunet_mutual.annotation.table import AnnotationTable, table_fingerprint
from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.raw import read_dataset_json, training_cases, unlabelled_cases
from nnunet_mutual.disk.locate import plans_in
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.errors import MutualError
from nnunet_mutual.modules.input_columns import input_keys
from nnunet_mutual.preprocessing.by_group import present_channels
from nnunet_mutual.preprocessing.unlabelled import unlabelled_dataset
from nnunet_mutual.pseudo_labels.soft_prediction import _complete as complete_images
from nnunet_mutual.trainers import MutualCrossModalTrainer

IN_TURN = {"T1": ["T1"], "FLAIR": ["FLAIR"]}
TURNED = {"FLAIR": ["FLAIR"], "T1": ["T1"]}


def voxels(folder: Path, key: str) -> np.ndarray:
    return np.asarray(nnUNetDatasetBlosc2(str(folder), [key]).load_case(key)[0][:])


def declare(*folders: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the block of dataset.json."""
    for folder in folders:
        content = json.loads((folder / "dataset.json").read_text())
        change(content["mutual"])
        (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.usefixtures("few_voxels")
def test_groups_in_another_order_are_other_groups(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = make_raw(nnunet_folders, groups=IN_TURN, unlabelled=1)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / tiny.NAME
    command = ["plan_and_preprocess", "-d", "901", "--no-check"]
    assert main([*command, "-c", "3d_fullres", "2d"]) == 0
    assert plans_in(preprocessed) == ["nnUNetPlansGroups"], "a note is taken for plans"
    data = preprocessed / "nnUNetPlansGroups_2d"
    images = preprocessed / "unlabelled" / data.name
    before = voxels(data, "case_00"), voxels(images, "un_0")
    declare(raw, change=lambda block: block.update(modality_groups=TURNED))
    assert main(["check", "901"]) != 0
    assert "the order of the modality groups" in "".join(capsys.readouterr())
    assert main(["sync", "901"]) == 0 and main(["check", "901"]) == 0
    assert "Next:  nnunet_mutual plan_and_preprocess -d 901" in capsys.readouterr().out.splitlines()[-1]
    plans = json.loads((preprocessed / "nnUNetPlansGroups.json").read_text())
    with pytest.raises(MutualError, match="preprocessed for other modality groups"):
        MutualCrossModalTrainer(plans, "2d", 0, read_dataset_json(preprocessed), torch.device("cpu"))
    capsys.readouterr()
    assert main([*command, "-c", "2d"]) == 0
    again = "-c 3d_fullres --as-planned nnUNetPlansGroups"
    assert "3d_fullres: preprocessed from what has been changed since" in (said := capsys.readouterr().out)
    assert again in said
    for old, new in zip(before, (voxels(data, "case_00"), voxels(images, "un_0")), strict=True):
        assert np.array_equal(old[::-1], new), "channels are stored as before"
    assert main(["check", "901"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("plan_and_preprocess -d 901 " + again)
    plans = json.loads((preprocessed / "nnUNetPlansGroups.json").read_text())
    trainer = MutualCrossModalTrainer(plans, "3d_fullres", 0, read_dataset_json(preprocessed), torch.device("cpu"))
    with pytest.raises(MutualError, match="preprocessed for other modality groups, or lacked other channels"):
        trainer.do_split()


def test_what_was_noted_about_cases(tmp_path: Path) -> None:
    data, keys = tmp_path / "data", ["c0", "c1", "came_since"]
    contents = [
        {"channel_names": CHANNELS, "labels": tiny.PLAIN, "numTraining": 3, "mutual": block}
        for block in (
            {"modality_groups": IN_TURN, "cases": {"c0": {"source": "a", "missing": ["FLAIR"]}}},
            {"modality_groups": IN_TURN},
            {"modality_groups": TURNED, "cases": {"c0": {"source": "a", "missing": ["FLAIR"]}}},
        )
    ]
    for content in contents:
        content["mutual"] |= {"version": 1, "sources": {"a": {"annotated": [*tiny.PLAIN][1:]}}}
        content["mutual"].setdefault("cases", {}).update({key: {"source": "a"} for key in keys[1:]})
        content["mutual"]["cases"].setdefault("c0", {"source": "a"})
    then, arrived, turned = (AnnotationTable.from_dataset_json(content) for content in contents)
    assert grouped_otherwise(data, then, keys) == [], "nobody noted anything"
    note_groups(data, then, keys[:2])
    assert grouped_otherwise(data, then, keys) == []
    assert grouped_otherwise(data, arrived, keys) == ["c0"]
    assert grouped_otherwise(data, turned, keys) == keys[:2]
    assert table_fingerprint(contents[0]) != table_fingerprint(contents[2])


def test_an_image_whose_channel_arrived_is_preprocessed_again_first(nnunet_folders: Path) -> None:
    """What was stored are zeros; FLAIR's network would take them for a FLAIR."""
    preprocessed = make_preprocessed(nnunet_folders, settings=SHORT, missing={"un_0": "FLAIR"})
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    trainer = trainer_for(preprocessed, MutualCrossModalTrainer)
    parts = preprocessed, trainer.plans_manager, trainer.configuration_manager
    assert unlabelled_dataset(*parts, trainer.table) is not None
    declare(raw, preprocessed, change=lambda block: block["cases"].pop("un_0"))
    table = AnnotationTable.from_dataset_json(read_dataset_json(preprocessed))
    with pytest.raises(MutualError, match="other channels of 1 unlabelled image.*un_0.*preprocess_unlabelled"):
        unlabelled_dataset(*parts, table)


def test_zeros_in_the_place_of_a_channel_are_not_predicted_softly(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_raw(nnunet_folders, groups=None)
    cases = unlabelled_cases(raw, read_dataset_json(raw), ())[0]
    assert [*complete_images(cases, [1], two_channels({"un_1": "FLAIR"}))] == ["un_0", "un_2"]
    assert "Left out" in capsys.readouterr().out
    assert len(complete_images(cases, [0], two_channels({"un_1": "FLAIR"}))) == 3


def test_plans_are_not_made_of_zeros(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """simulate --missing writes an image of zeros, since nnU-Net needs a file."""
    from nnunet_mutual.planning import plan_and_preprocess as module

    raw = make_raw(nnunet_folders, groups=IN_TURN)
    declare(raw, change=lambda block: block["cases"].update(case_01={"source": "a", "missing": ["FLAIR"]}))
    images = module.list_unlabelled("901")
    training = training_cases(raw, read_dataset_json(raw))[0]
    assert "case_01" in training and module._complete(images, training) == [k for k in training if k != "case_01"]


def test_a_channel_that_nobody_named(nnunet_folders: Path) -> None:
    content = read_dataset_json(make_raw(nnunet_folders, groups=IN_TURN))
    with pytest.raises(MutualError, match="channel 0002, and dataset.json names 2 channels"):
        present_channels([f"case_00_000{n}.nii.gz" for n in range(3)], content, two_channels())


def test_pretrained_weights_that_saw_another_group_blind_no_network(nnunet_folders: Path) -> None:
    trainer = trainer_for(make_preprocessed(nnunet_folders, settings=SHORT), MutualCrossModalTrainer)
    trainer.initialize()
    first = unwrap(trainer.peers.networks[0])
    columns = first.state_dict()[input_keys(first)[0]]
    columns[:, 1] = columns[:, 0]  # as nnU-Net leaves them: weights of FLAIR's network
    columns[:, 0] = 0
    trainer.on_train_start()
    assert "did not see all channels of T1" in Path(trainer.log_file).read_text()
    for network, used in zip(map(unwrap, trainer.peers.networks), trainer.groups.channels.values(), strict=True):
        for key in input_keys(network):
            seen = network.state_dict()[key].abs().amax((0, 2, 3, 4)) > 0
            assert seen.tolist() == [n in used for n in range(2)]


def test_images_of_validation_patients_are_not_called_unused(nnunet_folders: Path) -> None:
    """They may not be learnt from in this fold, and this trainer does learn from unlabelled images."""
    preprocessed = make_preprocessed(nnunet_folders, settings=SHORT)
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME

    def of_one_patient(block: dict[str, Any]) -> None:
        for key in ("case_00", "un_0", "un_1", "un_2"):
            block["cases"].setdefault(key, {"source": "a"})["patient"] = "p"

    declare(raw, preprocessed, change=of_one_patient)
    keys = [f"case_{n:02d}" for n in range(6)]
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": keys[1:], "val": keys[:1]}]))
    trainer = trainer_for(preprocessed, MutualCrossModalTrainer)
    trainer.initialize()
    trainer.on_train_start()
    said = Path(trainer.log_file).read_text()
    assert "no unlabelled images that this fold may use" in said and "does not learn from them" not in said
