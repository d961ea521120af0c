"""What `export --validate` refuses before it predicts anything, and what it leaves as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import tiny
import torch
from fresh import status_of_copy
from test_export import run_export, trained  # noqa: F401 - a fixture

from nnunet_mutual.disk import folders
from nnunet_mutual.errors import MutualError


@pytest.fixture()
def training(trained: Path, nnunet_folders: Path) -> Path:  # noqa: F811
    """The folder of a finished training, which the test may change."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        shutil.copytree(trained / name, nnunet_folders / name)
    return nnunet_folders / "nnUNet_results" / tiny.NAME / "PartialTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture()
def preprocessed(nnunet_folders: Path) -> Path:
    return nnunet_folders / "nnUNet_preprocessed" / tiny.NAME


def refused(training: Path, sentence: str, **changed: object) -> None:
    """An export that is refused leaves the older validation, whose numbers the model may still go out with."""
    before = {file: file.read_bytes() for file in (training / "fold_0" / "validation").iterdir()}
    with pytest.raises(MutualError, match=sentence):
        run_export(output_name="new", validate=True, **changed)
    assert {file: file.read_bytes() for file in (training / "fold_0" / "validation").iterdir()} == before
    assert not training.with_name("nnUNetTrainer__new__3d_fullres").exists()


def test_all_else_is_looked_at_before_anything_is_predicted(training: Path, tmp_path: Path) -> None:
    fold = training / "fold_0"
    refused(training, "train 901 3d_fullres 4 -tr PartialTrainer", folds=["0", "4"])
    refused(training, "one network that stock nnU-Net knows.*; leave --peers out", peers=True)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "box", tmp_path / "file"):
        refused(training, "nothing can be made in|exists and is never overwritten", container=str(place))
    (fold / "progress.png").rename(fold / "kept.png")
    refused(training, "progress.png is missing")
    (fold / "kept.png").rename(fold / "progress.png")
    (training / "dataset_fingerprint.json").write_text('{"spac')
    refused(training, "fingerprint.json is missing, was not written to its end")


def test_cases_that_were_trained_on_are_not_validated(training: Path, preprocessed: Path) -> None:
    file = preprocessed / "splits_final.json"
    splits = json.loads(file.read_text())
    first, *others = splits
    known = torch.load(training / "fold_0" / "checkpoint_final.pth", weights_only=True)["mutual_state"]
    assert known["trained_on"] == sorted(first["train"])
    moved = first["train"].pop()
    first["val"].append(moved)
    file.write_text(json.dumps([first, *others]))
    refused(training, rf"of fold 0 \({moved}\) were trained on, so splits_final.json is another one now")
    run_export(output_name="old")  # with the numbers that it had


def test_other_preprocessing_than_that_of_the_training_is_refused(training: Path, preprocessed: Path) -> None:
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    file.write_text(json.dumps(plans))
    refused(training, "nnUNetPlans.json is another one than fold 0 was trained with .*spacing")


def test_a_missing_drawing_is_named(training: Path, preprocessed: Path) -> None:
    summary = json.loads((training / "fold_0" / "validation" / "summary.json").read_text())
    key = Path(summary["metric_per_case"][0]["prediction_file"]).name
    (preprocessed / "gt_segmentations" / key).unlink()
    refused(training, f"{key} is missing, with which a prediction is compared")


def test_what_was_killed_is_finished_for_the_same_training_only(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"output_name": "new", "container": str(tmp_path / "box")}

    def export_and_die() -> None:
        names = []
        take_name = folders._take_name

        def once(*paths: Path) -> None:
            if names:
                os.kill(os.getpid(), signal.SIGKILL)
            names.append(paths)
            take_name(*paths)

        folders._take_name = once
        run_export(**options)

    assert status_of_copy(export_and_die) == -signal.SIGKILL
    model = training.with_name("nnUNetTrainer__new__3d_fullres")
    assert (tmp_path / "box").is_dir() and not model.exists()
    checkpoint = training / "fold_0" / "checkpoint_final.pth"
    before = checkpoint.stat()
    shutil.copyfile(checkpoint, tmp_path / "copy")
    (tmp_path / "copy").rename(checkpoint)  # trained on meanwhile
    with pytest.raises(MutualError, match="box exists and is never overwritten"):
        run_export(**options)
    assert (tmp_path / "box").is_dir() and not model.exists()
    os.utime(checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns))
    run_export(**options)
    assert "What an interrupted export had written is now in its place" in capsys.readouterr().out
    assert model.is_dir() and not list(tmp_path.glob("box/.unfinished"))
