"""The commands as a user types them: trainings in processes of their own, what only reads them in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import torch

from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.find import SHIM_FOLDER

KEYS = [f"case_{i:02d}" for i in range(6)]
SETTINGS = {"num_epochs": 3, "num_iterations_per_epoch": 10, "num_val_iterations_per_epoch": 1, "amp": "off"}
TRAIN = "nnUNetv2_train 901 3d_fullres 0 -tr PartialTrainer -device cpu"


@pytest.fixture()
def command_line(nnunet_folders: Path) -> dict[str, str]:
    """Environment of a user who followed the README."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "nnUNet_extTrainer": str(SHIM_FOLDER),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run_here(command: str) -> None:
    """Runs what an installed script runs."""
    name, *arguments = command.split()
    (script,) = entry_points(group="console_scripts", name=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setattr(torch, "set_num_threads", lambda number: None)  # all cores, for the rest of this process
        assert not script.load()()


def test_train_stop_continue_export_predict(
    nnunet_folders: Path, command_line: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.make_dataset(nnunet_folders, block=tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS), settings=SETTINGS)
    fold = nnunet_folders / "nnUNet_results" / tiny.NAME / "PartialTrainer__nnUNetPlans__3d_fullres" / "fold_0"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            TRAIN.split() + ["--c"] * fold.exists(),
            cwd=nnunet_folders,
            env=command_line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    with start() as training:
        said = []
        while not said or (said[-1] and "Pseudo dice" not in said[-1]):  # of the first of three epochs
            said.append(training.stdout.readline())
        training.send_signal(signal.SIGTERM)
        said.append(training.communicate(timeout=120)[0])
    assert training.returncode == 143, "".join(said)[-3000:]
    assert "SIGTERM received: saved at epoch" in said[-1]
    assert sorted(file.name for file in fold.glob("checkpoint*")) == ["checkpoint_best.pth", "checkpoint_latest.pth"]

    with start() as training:
        said = training.communicate(timeout=300)
    assert training.returncode == 0, said[0][-3000:]
    logs = sorted(fold.glob("training_log_*.txt"))
    epochs = [line for log in logs for line in log.read_text().splitlines() if "train_loss" in line]
    assert len(epochs) == 3, "no epoch is done twice or left out"
    assert not (fold / "checkpoint_latest.pth").exists()

    capsys.readouterr()
    run_here("nnunet_mutual export 901 3d_fullres -tr PartialTrainer -f 0")
    said = capsys.readouterr().out.splitlines()
    command = next(line for line in said if line.startswith("Next: ")).removeprefix("Next: ")
    images = nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesTr"
    command = command.replace("IMAGES", str(images)).replace("SEGMENTATIONS", str(nnunet_folders / "segmentations"))
    run_here(f"{command} -device cpu -npp 1 -nps 1")
    validated = sorted((fold / "validation_full").glob("*.nii.gz"))
    assert validated
    for file in validated:
        ours, stock = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (file, nnunet_folders / "segmentations" / file.name)
        )
        assert np.array_equal(ours, stock)


def test_nnunet_prints_our_sentence_for_a_wrong_table(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS)
    del block["cases"]["case_03"]
    tiny.make_dataset(nnunet_folders, block=block, settings=SETTINGS, drop=False)
    monkeypatch.setenv("nnUNet_extTrainer", str(SHIM_FOLDER))
    with pytest.raises(MutualError) as caught:
        run_here(TRAIN)
    last = "".join(traceback.format_exception(caught.value)).splitlines()[-1]  # of what Python prints of it
    assert "1 case(s) are not listed" in last and "case_03" in last
    assert not list((nnunet_folders / "nnUNet_results").rglob("checkpoint*"))
