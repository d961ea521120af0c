"""Unlabelled images that cannot be used, and wrong options: one sentence, and what is left on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny import image_and_labels, write_nifti
from unlabelled_images import DATA, Tiny

from nnunet_mutual.preprocessing import update as preprocessing


@pytest.fixture()
def tiny(nnunet_folders: Path) -> Tiny:
    return Tiny(nnunet_folders)


def spoilt(change: Callable[[np.ndarray], None]) -> Callable[[Tiny], object]:
    def spoil(tiny: Tiny) -> None:
        voxels = image_and_labels(5)[0]
        change(voxels)
        write_nifti(voxels, tiny.raw / "imagesUn" / "un_1_0000.nii.gz")

    return spoil


def move(old: str, new: str) -> Callable[[Tiny], object]:
    return lambda tiny: (tiny.raw / "imagesUn" / old).rename(tiny.raw / "imagesUn" / new)


def truncated(tiny: Tiny) -> None:
    path = tiny.raw / "imagesUn" / "un_1_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


def second_channel(tiny: Tiny) -> None:
    shutil.copy(tiny.raw / "imagesUn" / "un_1_0000.nii.gz", tiny.raw / "imagesUn" / "un_1_0001.nii.gz")


def flat(tiny: Tiny) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 2), np.float32), isVector=True)
    sitk.WriteImage(image, str(tiny.raw / "imagesUn" / "un_1_0000.nii.gz"))


UNUSABLE: dict[str, tuple[Callable[[Tiny], object], str]] = {
    "unreadable": (truncated, "imagesUn/un_1_0000.nii.gz: is cut off or damaged"),
    "NaN": (spoilt(lambda voxels: voxels.__setitem__((0, 0, 0), np.nan)), "un_1_0000.nii.gz: 1 voxel(s) are NaN"),
    "empty": (spoilt(lambda voxels: voxels.fill(0)), "un_1_0000.nii.gz: every voxel is 0; replace or remove it"),
    "a channel too many": (second_channel, "un_1_0001.nii.gz: channel 1 is not in dataset.json, which has 1 (CT)"),
    "second channel alone": (move("un_1_0000.nii.gz", "un_1_0001.nii.gz"), "channel 1 is not in dataset.json"),
    "vectors": (flat, "imagesUn/un_1_0000.nii.gz: "),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_image_that_cannot_be_used_does_not_stop_the_others(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, sentence = UNUSABLE[kind]
    spoil(tiny)
    assert tiny.run() == 2
    shown = capsys.readouterr().err.split("error: ")[-1]
    assert "1 unlabelled image(s) cannot be used, the others are done" in shown and sentence in shown
    assert "\n" not in shown.strip()
    assert tiny.identifiers == ["un_0", "un_2"] and len(tiny.times()) == 6
    tiny.image("un_1", 9)
    (tiny.raw / "imagesUn" / "un_1_0001.nii.gz").unlink(missing_ok=True)
    assert tiny.run() == 0
    assert tiny.identifiers == ["un_0", "un_1", "un_2"]


def test_an_image_that_became_unusable_is_no_longer_listed(tiny: Tiny) -> None:
    assert tiny.run() == 0
    truncated(tiny)
    assert tiny.run() == 2
    assert tiny.identifiers == ["un_0", "un_2"]


def emptied(tiny: Tiny) -> None:
    assert tiny.run() == 0
    for path in (tiny.raw / "imagesUn").iterdir():
        path.unlink()


def running(tiny: Tiny) -> None:
    stale = tiny.folder.with_name(f".{DATA}.preprocessing")
    stale.mkdir(parents=True)
    (stale / "preprocessing_in_progress").write_text("another-computer 4711")


def fine(_: Tiny) -> None:
    """The images are fine, the options are not."""


BAD: dict[str, tuple[Callable[[Tiny], object], list[str], str]] = {
    "name of a labelled case": (
        lambda tiny: tiny.image("case_00", 4),
        [],
        "imagesUn/case_00_0000.nii.gz: the name case_00 is in imagesTr too; remove it here",
    ),
    "no channel number": (move("un_1_0000.nii.gz", "un_1.nii.gz"), [], "imagesUn/un_1.nii.gz: no channel number"),
    "name of a label map": (
        move("un_1_0000.nii.gz", "un_seg_0000.nii.gz"),
        [],
        "names that end in _seg",
    ),
    "unknown configuration": (fine, ["-c", "3d_fulres"], "no configuration '3d_fulres' (did you mean '3d_fullres'?)"),
    "unknown plans": (fine, ["-p", "Plans"], "Plans.json does not exist; plans of Dataset901_Tiny: nnUNetPlans"),
    "no process": (fine, ["-np", "0"], "-np: it must be a whole number from 1"),
    "nothing preprocessed": (
        lambda tiny: shutil.rmtree(tiny.preprocessed / DATA),
        [],
        "no configuration of Dataset901_Tiny is preprocessed yet; run nnunet_mutual plan_and_preprocess -d 901",
    ),
    "nothing planned": (lambda tiny: shutil.rmtree(tiny.preprocessed), [], "is not in nnUNet_preprocessed"),
    "no raw data": (lambda tiny: shutil.rmtree(tiny.raw), [], "is not in nnUNet_raw"),
    "all images gone": (emptied, [], "imagesUn of Dataset901_Tiny is empty, but"),
    "another run": (running, [], "another preprocessing (process 4711 on another-computer) is writing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_sentence_and_nothing_changed(tiny: Tiny, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    spoil, options, sentence = BAD[kind]
    spoil(tiny)
    before = tiny.state()
    capsys.readouterr()
    assert tiny.run(*options) == 2
    shown = capsys.readouterr().err.split("error: ")[-1]
    assert sentence in shown and "\n" not in shown.strip()
    assert tiny.state() == before


def test_full_disk_keeps_what_is_done(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = preprocessing.add_to_record

    def full(path: Path, key: str, state: dict[str, Any]) -> None:
        if key == "un_1":
            raise OSError(28, "No space left on device")
        add(path, key, state)

    monkeypatch.setattr(preprocessing, "add_to_record", full)
    assert tiny.run() == 2
    assert "could not be written (No space left on device); free space" in capsys.readouterr().err
    assert not tiny.folder.with_name(f".{DATA}.preprocessing").exists()
    monkeypatch.undo()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tiny.root / name))
    assert tiny.run() == 0
    assert "1 unlabelled image(s) up to date, 2 to preprocess" in capsys.readouterr().out
