"""The commands as a user types them, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny

from nnunet_mutual.plugin.find import SHIM_FOLDER

KEYS = [f"case_{i:02d}" for i in range(6)]
SETTINGS = {"num_epochs": 4, "num_iterations_per_epoch": 40, "num_val_iterations_per_epoch": 1, "amp": "off"}


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


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_train_stop_continue_export_predict(nnunet_folders: Path, command_line: dict[str, str]) -> None:
    tiny.make_dataset(nnunet_folders, block=tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS), settings=SETTINGS)
    fold = nnunet_folders / "nnUNet_results" / tiny.NAME / "PartialTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    train = "nnUNetv2_train 901 3d_fullres 0 -tr PartialTrainer -device cpu"

    output = nnunet_folders / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(train.split(), cwd=nnunet_folders, env=command_line, stdout=file, stderr=file)
        deadline = time.time() + 240
        while "Pseudo dice" not in output.read_text() and process.poll() is None and time.time() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143, output.read_text()[-3000:]
    assert "SIGTERM received: saved at epoch" in output.read_text()
    assert sorted(file.name for file in fold.glob("checkpoint*")) == ["checkpoint_best.pth", "checkpoint_latest.pth"]

    run(f"{train} --c", nnunet_folders, command_line)
    logs = sorted(fold.glob("training_log_*.txt"))
    epochs = [line for log in logs for line in log.read_text().splitlines() if "train_loss" in line]
    assert len(epochs) == 4, "no epoch is done twice or left out"
    assert not (fold / "checkpoint_latest.pth").exists()

    exported = run("nnunet_mutual export 901 3d_fullres -tr PartialTrainer -f 0", nnunet_folders, command_line)
    command = next(line for line in exported.splitlines() if line.startswith("Next: ")).removeprefix("Next: ")
    images = nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesTr"
    command = command.replace("IMAGES", str(images)).replace("SEGMENTATIONS", str(nnunet_folders / "segmentations"))
    run(f"{command} -device cpu -npp 1 -nps 1", nnunet_folders, {**command_line, "nnUNet_extTrainer": ""})
    for file in (fold / "validation_full").glob("*.nii.gz"):
        ours, stock = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (file, nnunet_folders / "segmentations" / file.name)
        )
        assert np.array_equal(ours, stock)


def test_nnunet_prints_our_sentence_for_a_wrong_table(nnunet_folders: Path, command_line: dict[str, str]) -> None:
    block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS)
    del block["cases"]["case_03"]
    tiny.make_dataset(nnunet_folders, block=block, settings=SETTINGS, drop=False)
    train = "nnUNetv2_train 901 3d_fullres 0 -tr PartialTrainer -device cpu"
    done = subprocess.run(
        train.split(), cwd=nnunet_folders, env=command_line, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert "1 case(s) are not listed" in done.stderr.splitlines()[-1] and "case_03" in done.stderr.splitlines()[-1]
    assert not list((nnunet_folders / "nnUNet_results").rglob("checkpoint*"))
