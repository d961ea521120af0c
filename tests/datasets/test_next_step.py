"""The next command is the right one: planning, unlabelled images, or a training with the trainer that fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch._dynamo  # which looks at functions as they are, before these tests replace them
from raw_dataset import NAME, RawDataset

from nnunet_mutual.annotation import fitting
from nnunet_mutual.annotation.fitting import fitting_trainers
from nnunet_mutual.annotation.modality_groups import PLANS_KEY
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import build_parser, main
from nnunet_mutual.datasets.next_step import Contents
from nnunet_mutual.disk.locate import locate, require_root
from nnunet_mutual.disk.trainings import NamedTraining, device_option
from nnunet_mutual.plugin.find import training_names

GROUPS = {"T1": ["T1"], "FLAIR": ["FLAIR"]}


def table(drawn: dict[str, list[str]], **block: Any) -> AnnotationTable:
    cases = {key: {"source": "a", "annotated": labels} for key, labels in drawn.items()}
    content = {"version": 1, "sources": {"a": {"annotated": []}}, "cases": cases, **block}
    labels = {"background": 0, "liver": 1, "spleen": 2}
    return AnnotationTable.from_dataset_json(
        {"labels": labels, "channel_names": {"0": "T1", "1": "FLAIR"}, "mutual": content}
    )


FULL = {"c1": ["liver", "spleen"], "c2": ["liver", "spleen"]}
PARTIAL = {"c1": ["liver"], "c2": ["spleen"]}
NOTHING = {"c1": ["liver", "spleen"], "c2": []}
TWO_STREAMS = ["MeanTeacherTrainer", "MutualCorrelationTrainer", "MutualPrototypeTrainer", "SoftLabelTrainer"]
CHOICES: dict[str, tuple[dict[str, list[str]], bool, dict[str, Any], str]] = {
    "all drawn": (FULL, False, {}, "PartialTrainer"),
    "different labels, few cases of each": (PARTIAL, False, {}, "TaughtPartialTrainer"),
    "different labels, many cases of one": (
        {**PARTIAL, **{f"d{n}": ["liver"] for n in range(10)}},
        False,
        {},
        "PartialTrainer",
    ),
    "images in imagesUn": (FULL, True, {}, "MeanTeacherTrainer"),
    "different labels and imagesUn": (PARTIAL, True, {}, "MeanTeacherTrainer"),
    "a case without any label": (NOTHING, False, {}, "MeanTeacherTrainer"),
    "one of eleven cases without any label": (
        {**{f"d{n}": ["liver", "spleen"] for n in range(10)}, "c2": []},
        False,
        {},
        "PartialTrainer",
    ),
    "plans of groups": (FULL, True, {"by_group": True}, "MutualCrossModalTrainer"),
    "settings of two stages": (PARTIAL, False, {"accepting": ["MutualPartialTrainer"]}, "MutualPartialTrainer"),
    "settings of a teacher": (FULL, True, {"accepting": [*TWO_STREAMS[::-1]]}, "MeanTeacherTrainer"),
    "settings that do not fit": (FULL, False, {"accepting": ["MutualPrototypeTrainer"]}, "MutualPrototypeTrainer"),
}


@pytest.mark.parametrize(("drawn", "unlabelled", "given", "expected"), CHOICES.values(), ids=CHOICES)
def test_the_trainer_that_fits(
    drawn: dict[str, list[str]], unlabelled: bool, given: dict[str, Any], expected: str
) -> None:
    trainer, why = fitting_trainers(table(drawn), drawn, unlabelled, **given)[0]
    assert trainer == expected
    assert ("but the dataset asks for PartialTrainer" in why) == (drawn is FULL and not unlabelled and bool(given))


def test_labels_that_are_drawn_in_part_are_said() -> None:
    cases = {"c1": {"source": "a"}, "c2": {"source": "a", "incomplete": ["spleen"]}}
    found = table({}, sources={"a": {"annotated": ["liver", "spleen"]}}, cases=cases)
    assert fitting_trainers(found, cases, False)[0] == ("PartialTrainer", "labels are drawn in part")
    cases["c3"] = {"source": "a", "annotated": ["liver"]}
    found = table({}, sources={"a": {"annotated": ["liver", "spleen"]}}, cases=cases)
    assert fitting_trainers(found, cases, False)[0] == ("PartialTrainer", "cases annotate different labels")


def test_relative_roots_are_found_from_anywhere(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replaced or undone later is named from the root of the file system."""
    raw = RawDataset(nnunet_folders)
    monkeypatch.chdir(nnunet_folders)
    monkeypatch.setenv("nnUNet_raw", "nnUNet_raw")
    assert locate(NAME).raw == require_root("nnUNet_raw") / NAME == raw.folder


def test_a_withdrawn_case_does_not_count(nnunet_folders: Path) -> None:
    raw = RawDataset(nnunet_folders)
    raw.declare()
    truth = raw.preprocessed(nnunet_folders) / "gt_segmentations"
    shutil.copytree(raw.folder / "labelsTr", truth)
    (truth / "withdrawn.nii.gz").write_bytes(b"")
    assert Contents.of_planned(locate(NAME)).cases == sorted(raw.drawn)


def test_declared_groups_count_before_planning_and_plans_afterwards() -> None:
    grouped = table(FULL, modality_groups=GROUPS)
    assert fitting_trainers(grouped, FULL, False)[0] == ("MutualCrossModalTrainer", "2 modality groups")
    assert fitting_trainers(grouped, FULL, False, by_group=False)[0][0] == "PartialTrainer"


def test_every_trainer_is_known_to_the_choice() -> None:
    assert {*fitting.BY_GROUP, *fitting.UNLABELLED, *fitting.DIFFERENT} == set(training_names())


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with one, on which no command needs -device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device_option.cache_clear()
    yield
    device_option.cache_clear()


@pytest.mark.parametrize(("mps", "device"), [(False, "cpu"), (True, "mps")])
def test_without_gpu_the_next_command_names_the_device(
    nnunet_folders: Path, mps: bool, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    tiny.make_dataset(nnunet_folders)
    command = f"nnunet_mutual train 901 3d_fullres 0 -tr PartialTrainer -device {device}"
    assert next_line(capsys, "check", "901") == command
    planned = next_line(capsys, "plan", "-d", "901", "--name", "long", "--set", "num_epochs=9")
    assert planned.startswith(f"nnunet_mutual train 901 3d_fullres_long 0 -tr PartialTrainer -device {device} ")
    assert main(["report", "901", "3d_fullres", "-tr", "PartialTrainer", "-f", "0"]) == 2
    assert f"train it with: {command}" in capsys.readouterr().err
    named = NamedTraining(tiny.NAME, "3d_fullres", "0", "PartialTrainer", "nnUNetPlans")
    for words in (command, named.command, named.pseudo_label_command):
        options = build_parser()[0].parse_args(words.split()[1:])
        assert options.device == device, "it is an option of the command"


def next_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Next:" in line]
    return line.split("Next:")[1].strip()


def test_after_a_check(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pre = tiny.make_dataset(nnunet_folders, configurations=("3d_lowres", "2d"))
    raw = nnunet_folders / "nnUNet_raw" / tiny.NAME
    # what exists is recommended: no 3d_fullres here
    assert next_line(capsys, "check", "901") == "nnunet_mutual train 901 3d_lowres 0 -tr PartialTrainer"
    shutil.rmtree(pre / "nnUNetPlans_3d_lowres")
    assert next_line(capsys, "check", "901") == "nnunet_mutual train 901 2d 0 -tr PartialTrainer"

    (raw / "imagesUn").mkdir()
    shutil.copy(raw / "imagesTr" / "case_00_0000.nii.gz", raw / "imagesUn" / "new_0000.nii.gz")
    assert next_line(capsys, "check", "901") == "nnunet_mutual preprocess_unlabelled -d 901 -c 2d"
    assert main(["check", "901"]) == 0
    assert "6 training cases, 1 unlabelled image(s) in imagesUn" in capsys.readouterr().out
    line = next_line(capsys, "preprocess_unlabelled", "-d", "901", "-np", "1")
    assert line == "nnunet_mutual train 901 2d 0 -tr MeanTeacherTrainer"
    assert next_line(capsys, "check", "901") == line

    plans = json.loads((pre / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"]["mutual"] = {"planned": {"trainer": "MutualCorrelationTrainer", "settings": {}}}
    (pre / "nnUNetPlans.json").rename(pre / "nnUNetMutualPlans.json")
    (pre / "nnUNetMutualPlans.json").write_text(json.dumps({**plans, "plans_name": "nnUNetMutualPlans"}))
    expected = "nnunet_mutual train 901 2d 0 -tr MutualCorrelationTrainer -p nnUNetMutualPlans"
    assert next_line(capsys, "check", "901") == expected
    for planned in ({"trainer": 5, "settings": {}}, {"settings": {}}, 5):
        plans["configurations"]["2d"]["mutual"] = {"planned": planned}
        (pre / "nnUNetOldPlans.json").write_text(json.dumps({**plans, "plans_name": "nnUNetOldPlans"}))
        assert next_line(capsys, "check", "901") == expected
    del plans["configurations"]["2d"]["mutual"]
    (pre / "nnUNetPlans.json").write_text(json.dumps(plans))
    other = ("preprocess_unlabelled", "-d", "901", "-np", "1")
    assert next_line(capsys, *other, "-p", "nnUNetMutualPlans") == expected
    assert next_line(capsys, *other) == line
    for file in ("nnUNetPlans.json", "nnUNetOldPlans.json"):
        (pre / file).unlink()
    shutil.rmtree(pre / "nnUNetPlans_2d")
    assert next_line(capsys, "check", "901") == "nnunet_mutual plan_and_preprocess -d 901 -c 3d_fullres"


def test_cases_that_came_after_preprocessing_are_preprocessed(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training lists its cases in the preprocessed folder, and would not use them without a word."""
    pre = tiny.make_dataset(nnunet_folders)
    (pre / "nnUNetPlans_3d_fullres" / "case_05.pkl").unlink()
    line = "nnunet_mutual plan_and_preprocess -d 901 -c 3d_fullres --as-planned nnUNetPlans"
    assert next_line(capsys, "check", "901") == line


def test_too_few_cases_for_folds_are_all_trained_on(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pre = tiny.make_dataset(nnunet_folders, cases=4)
    plan = ["plan", "-d", "901", "--set", "num_epochs=9", "--name"]
    assert next_line(capsys, "check", "901") == "nnunet_mutual train 901 3d_fullres all -tr PartialTrainer"
    assert next_line(capsys, *plan, "a").startswith("nnunet_mutual train 901 3d_fullres_a all -tr")
    (pre / "splits_final.json").write_text(json.dumps([{"train": ["case_00"], "val": ["case_01"]}]))  # somebody's own
    assert next_line(capsys, "check", "901") == "nnunet_mutual train 901 3d_fullres 0 -tr PartialTrainer"
    assert next_line(capsys, *plan, "b").startswith("nnunet_mutual train 901 3d_fullres_b 0 -tr")


def test_after_new_settings(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pre = tiny.make_dataset(nnunet_folders, configurations=())
    assert main(["plan", "-d", "901", "--name", "early", "--set", "num_epochs=9"]) == 0
    assert "Next, its data: nnunet_mutual plan_and_preprocess" in capsys.readouterr().out
    (pre / "nnUNetPlans_3d_fullres").mkdir()

    def trainer(name: str, *settings: str) -> str:
        line = next_line(capsys, "plan", "-d", "901", "--name", name, "--set", *settings)
        assert line.startswith(f"nnunet_mutual train 901 3d_fullres_{name} 0 -tr ")
        return line.split("-tr ")[1]

    assert trainer("a", "num_epochs=9") == "PartialTrainer     (PartialTrainer: every case annotates every label)"
    assert trainer("b", "strong_intensity=false").startswith("MeanTeacherTrainer     (MeanTeacherTrainer: it knows")
    (pre / "unlabelled" / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (pre / "unlabelled" / "nnUNetPlans_3d_fullres" / "new.pkl").touch()
    # settings of a mean teacher are not those of soft labels, which nobody made
    assert trainer("c", "ema=0.999").startswith("MeanTeacherTrainer     (MeanTeacherTrainer: there are unlabelled")
    assert trainer("d", "ramp=0.1").startswith("MeanTeacherTrainer ")
    plans = json.loads((pre / "nnUNetPlans.json").read_text())
    (pre / "nnUNetPlans.json").write_text(json.dumps({**plans, PLANS_KEY: GROUPS}))
    assert trainer("e", "ramp=0.1").startswith("MutualCrossModalTrainer ")


def test_new_settings_of_what_was_planned_for_a_trainer(
    nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pre = tiny.make_dataset(nnunet_folders, configurations=())
    (pre / "nnUNetPlans_3d_fullres").mkdir()
    plans = json.loads((pre / "nnUNetPlans.json").read_text())
    planned = {"trainer": "MutualCorrelationTrainer", "settings": {"memory": "joint"}}
    plans["configurations"]["3d_fullres"]["mutual"] = {"planned": planned}
    (pre / "nnUNetPlans.json").write_text(json.dumps(plans))
    line = next_line(capsys, "plan", "-d", "901", "--name", "long", "--set", "num_epochs=9")
    assert line.startswith("nnunet_mutual train 901 3d_fullres_long 0 -tr MutualCorrelationTrainer ")
    line = next_line(capsys, "plan", "-d", "901", "--name", "other", "--set", "loss.pd=0.5", "stage1_networks=groups")
    assert line.startswith("nnunet_mutual train 901 3d_fullres_other 0 -tr MutualPartialTrainer ")


def test_images_of_one_slice_are_planned_in_2d(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = RawDataset(nnunet_folders, {"a": ["liver"]}, {"background": 0, "liver": 1}, ending=".png")
    from skimage.io import imsave

    grey = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)
    imsave(raw.folder / "imagesTr" / "a_0000.png", grey)
    imsave(raw.folder / "labelsTr" / "a.png", (grey > 200).astype(np.uint8), check_contrast=False)
    raw.save(channel_names={"0": "grey"})
    assert next_line(capsys, "check", NAME) == "nnunet_mutual plan_and_preprocess -d 777 -c 2d"
    assert main(["simulate", NAME, "Dataset778_Out", "--labelled", "1"]) == 0
    assert "Then:  nnunet_mutual plan_and_preprocess -d 778 -c 2d\n" in capsys.readouterr().out


def test_a_ct_without_negative_values(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = RawDataset(nnunet_folders)
    raw.image("toy_002", np.random.default_rng(0).uniform(0, 2000, (4, 5, 6)))
    assert main(["check", NAME]) == 0
    said = capsys.readouterr().out
    assert "channel CT: no negative value in 1 of 5 case(s) (toy_002); a CT in HU has air at -1000" in said
    raw.save(channel_names={"0": "T1"})
    assert main(["check", NAME]) == 0
    assert "no negative value" not in capsys.readouterr().out
