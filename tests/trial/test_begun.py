"""A trial that has begun stands on its own, and what would make its answer wrong is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
from test_trial import ARMS, LABELS, SETTINGS, WORDS, Pretended
from tiny import NAME, make_dataset
from training import KEYS

from nnunet_mutual.cli.parser import main
from nnunet_mutual.trial import command

COUNT = ["trial", "901", "3d_fullres", *ARMS]


@pytest.fixture()
def whole(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset that is drawn whole and planned; runs are not trained but written."""
    make_dataset(nnunet_folders, settings=SETTINGS)
    splits = [{"train": KEYS[:4], "val": KEYS[4:]}]
    (nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits))
    monkeypatch.chdir(nnunet_folders)
    arms = ["nnUNetTrainer", "PartialTrainer"]
    monkeypatch.setattr(command, "run_all", Pretended(nnunet_folders / "here", arms, KEYS[4:]))
    return nnunet_folders


def test_what_becomes_of_the_dataset_does_not_matter(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *ARMS, "--list-jobs"]) == 0
    raw, held_out = whole / "nnUNet_raw" / NAME, whole / "here" / "held_out"
    before = (held_out / "labelsTr" / "case_04.nii.gz").read_bytes()
    label = raw / "labelsTr" / "case_04.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(label)) * 0, str(label))  # in its place, as editors save
    block = {"sources": {"a": {"annotated": ["liver"]}}, "cases": {key: {"source": "a"} for key in KEYS}}
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "mutual": {"version": 1, **block}}))
    assert main(WORDS) == 0 and "which no arm has seen" in capsys.readouterr().out
    assert (held_out / "labelsTr" / "case_04.nii.gz").read_bytes() == before
    shutil.rmtree(whole / "nnUNet_preprocessed" / NAME)
    shutil.move(raw, whole / "moved")
    assert main(WORDS) == 0 and main(["trial", NAME, *WORDS[2:]]) == 0
    assert main([*COUNT[:3], "-o", "here", "--test", "902"]) == 2
    said = capsys.readouterr()
    assert "Take PartialTrainer" in said.out and "no dataset has the ID 902" in said.err


def test_an_image_that_was_saved_anew_is_refused(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *ARMS]) == 0
    image = whole / "nnUNet_raw" / NAME / "imagesTr" / "case_04_0000.nii.gz"
    before, shifted = image.read_bytes(), sitk.ReadImage(str(image)) + 1
    (whole / "here" / "runs" / "PartialTrainer_seed0.json").unlink()
    for content in (None, before):
        if content is None:
            sitk.WriteImage(shifted, str(image))
        else:
            image.write_bytes(content)
        for words in (WORDS, [*WORDS, "--job", "PartialTrainer_seed7"]):
            assert main(words) == (2 if content is None or "--job" in words else 0)
            said = "saved anew since this trial began" in capsys.readouterr().err
            assert said == (content is None)
    sitk.WriteImage(shifted, str(image))
    assert main(WORDS) == 0, "what is finished is shown again"
    shutil.copytree(whole / "here", whole / "copied")  # all files have other times there
    assert main([*WORDS[:-1], "copied", "--job", "PartialTrainer_seed7"]) == 2
    assert "saved anew" in capsys.readouterr().err
    image.write_bytes(before)
    shutil.rmtree(whole / "copied")
    shutil.copytree(whole / "here", whole / "copied")
    assert main([*WORDS[:-1], "copied", "--job", "PartialTrainer_seed7"]) == 2
    assert "has no run" in capsys.readouterr().err


def test_numbers_that_cannot_be_are_refused_at_once(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *ARMS, "--labelled", "2", "100"]) == 2
    assert "--labelled 100" in capsys.readouterr().err and not (whole / "here").exists()
    block = {"sources": {"a": {"annotated": list(LABELS)}}, "version": 1}
    cases = {key: {"source": "a", "patient": f"p{n // 2}"} for n, key in enumerate(KEYS)}
    for root in ("nnUNet_raw", "nnUNet_preprocessed"):
        file = whole / root / NAME / "dataset.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "mutual": {**block, "cases": cases}}))
    assert main([*WORDS, *ARMS, "--labelled", "2", "3", "4"]) == 2
    assert "--labelled 3: 3 case(s) cannot be made of whole patients" in capsys.readouterr().err
    assert main([*WORDS, *ARMS[:-1], "400", "--labelled", "2", "3", "4"]) == 2
    assert "1200 draws are more than the 998" in capsys.readouterr().err


def test_a_kill_while_it_begins_mixes_no_divisions(whole: Path) -> None:
    assert main([*WORDS, *ARMS, "--list-jobs"]) == 0
    shutil.rmtree(whole / "here" / "held_out")  # written last
    (whole / "here" / "linked.json").unlink()
    splits = [{"train": KEYS[2:], "val": KEYS[:2]}]
    (whole / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits))
    assert main([*WORDS, "--list-jobs"]) == 0
    trained = {path.name[:7] for path in (whole / "here" / "nnUNet_raw" / NAME / "labelsTr").iterdir()}
    scored = {path.name[:7] for path in (whole / "here" / "held_out" / "labelsTr").iterdir()}
    assert (trained, scored) == ({*KEYS[2:]}, {*KEYS[:2]})


def test_without_a_folder_a_run_is_of_the_usual_one(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["nnUNetTrainer", "PartialTrainer"]
    monkeypatch.setattr(command, "run_all", Pretended(whole / "trial_901_3d_fullres", arms, KEYS[4:]))
    assert main(COUNT) == 0
    assert main([*COUNT[:3], "--job", "PartialTrainer_seed7"]) == 2
    assert "trial_901_3d_fullres has no run 'PartialTrainer_seed7'" in capsys.readouterr().err


def test_the_next_training_is_not_that_which_was_compared(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = command.run_all
    assert isinstance(run, Pretended)
    run.arms.reverse()  # so that the first one is better
    assert main([*WORDS, *ARMS]) == 0
    said = capsys.readouterr().out
    assert "nnU-Net's own trainer makes 250,000 updates (sgd, initial_lr 0.01); what is concluded here is of 6" in said
    assert "own trainer makes 250,000 updates" in (whole / "here" / "trial.html").read_text()


def test_a_loss_that_is_no_number_ends_the_measurement(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stock nnU-Net divides 0 by 0 where a network has two stages; an arm that learns nothing must not be compared."""
    file = whole / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = {
        name: 2 if name == "n_stages" else value[: 1 if "decoder" in name else 2] if isinstance(value, list) else value
        for name, value in network.items()
    }
    file.write_text(json.dumps(plans))
    assert main([*WORDS, *ARMS, "--list-jobs"]) == 0  # the measurement is pretended there
    capsys.readouterr()
    assert main([*WORDS, "--job", "timing_nnUNetTrainer"]) == 2
    said = capsys.readouterr().err
    assert "the loss of nnU-Net's own trainer became nan in epoch 0" in said and "plan three" in said
    assert main([*WORDS, "--job", "timing_PartialTrainer"]) == 0
