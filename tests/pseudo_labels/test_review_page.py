"""The folder that a reader gets: page, table, masks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from reviewing import REVIEW, TRAINING, decided, fabricate, raw_label, run, truth, voxels

from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.pseudo_labels.review.orientation import frame_of

DECISIONS = [
    decided("case_00", "spleen", z=2.9),
    decided("case_00", "tumour"),
    decided("case_01", "liver", False, z=7.0, reason="too large: <9> ml"),
    decided("case_02", "spleen", False, z=3.4),
]


def test_folder(nnunet_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(nnunet_folders, DECISIONS)
    out = tmp_path / "new" / "review"
    assert run(*REVIEW, "-o", out) == 0
    said = capsys.readouterr().out
    assert "3 of 4 pseudo labels" in said and f"nnunet_mutual accept 901 {out}/review.csv --dry-run" in said
    assert sorted(path.name for path in out.iterdir()) == ["candidates", "review.csv", "review.html", "review.json"]
    assert (out / "review.csv").read_text().split() == [
        "case,label,decision,corrected_file,comment",
        "case_01,liver,,,",
        "case_02,spleen,,,",
        "case_00,spleen,,,",
    ]
    page = (out / "review.html").read_text()
    assert page.count("data:image/png;base64,iVBOR") == 3
    assert not re.search(r"<script|https?:|src=\"(?!data:)|@import|url\(", page), "nothing is fetched or run"
    assert "too large: &lt;9&gt; ml" in page
    assert re.findall(r"<h2>\d\. (.*)</h2>", page) == ["liver in case_01", "spleen in case_02", "spleen in case_00"]
    for key, label, value in (("case_01", "liver", 1), ("case_02", "spleen", 3), ("case_00", "spleen", 3)):
        (file,) = (out / "candidates").glob(f"{key}__*_{label}.nii.gz")
        assert f"candidates/{file.name}" in page
        expected = (truth(key) == value) & (raw_label(nnunet_folders, key) == 0)
        np.testing.assert_array_equal(voxels(file), expected)
        image = sitk.ReadImage(str(nnunet_folders / "nnUNet_raw" / tiny.NAME / "imagesTr" / f"{key}_0000.nii.gz"))
        mask = sitk.ReadImage(str(file))
        assert (mask.GetSpacing(), mask.GetOrigin()) == (image.GetSpacing(), image.GetOrigin())


def test_all_at_most_and_what_is_annotated_by_now(
    nnunet_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_mutual.pseudo_labels.review.make.draw", lambda scene: "data:,")
    fabricate(nnunet_folders, [*DECISIONS, decided("case_04", "liver", False)])
    assert run(*REVIEW, "-o", tmp_path / "all", "--all") == 0
    assert len((tmp_path / "all" / "review.csv").read_text().split()) == 5, "a drawn liver is not reviewed"
    assert run(*REVIEW, "-o", tmp_path / "most", "--max", 1) == 0
    assert (tmp_path / "most" / "review.csv").read_text().split()[1:] == ["case_01,liver,,,"]
    assert "2 less doubtful ones left out" in capsys.readouterr().out
    assert "2 less doubtful ones were left out" in (tmp_path / "most" / "review.html").read_text()


def test_no_doubt(nnunet_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(nnunet_folders, [decided("case_00", "spleen")])
    assert run(*REVIEW, "-o", tmp_path / "review") == 0
    assert "none doubtful; nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "review").exists()


def test_regions_and_nothing_found(nnunet_folders: Path, tmp_path: Path) -> None:
    block = tiny.two_sources(["core"], ["whole"], [f"case_{i:02d}" for i in range(4)])
    decisions = [
        decided("case_00", "whole", False),
        decided("case_02", "core", False),
        decided("case_03", "core", False),
    ]
    store = fabricate(nnunet_folders, decisions, block=block, labels=tiny.REGIONS, cases=4)
    nothing = np.zeros((1, 16, 20, 18), np.int16)
    PseudoStore(store).write("case_03", nothing, {}, [decisions[2]], candidates=nothing)
    assert run(*REVIEW, "-o", tmp_path / "review") == 0
    masks = tmp_path / "review" / "candidates"
    whole, core = (voxels(masks / name) for name in ("case_00__01_whole.nii.gz", "case_02__02_core.nii.gz"))
    np.testing.assert_array_equal(whole, truth("case_00") > 0)
    np.testing.assert_array_equal(core, truth("case_02") >= 2)
    assert not voxels(masks / "case_03__02_core.nii.gz").any()
    assert "nothing was found" in (tmp_path / "review" / "review.html").read_text()


def test_sets_of_pseudo_labels(
    nnunet_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_mutual.pseudo_labels.review.make.draw", lambda scene: "data:,")
    decisions = [decided("case_00", "spleen", False)]
    fabricate(nnunet_folders, decisions, name="pseudo_labels_final")
    assert run(*REVIEW, "-o", tmp_path / "one", "--max", 1) == 0
    fabricate(nnunet_folders, decisions, name="pseudo_labels_best")
    assert run(*REVIEW, "-o", tmp_path / "two") == 2
    assert "say which: -chk checkpoint_best.pth, -chk checkpoint_final.pth" in capsys.readouterr().err
    assert run(*REVIEW, "-o", tmp_path / "two", "-chk", "checkpoint_best.pth") == 0
    assert "pseudo_labels_best" in (tmp_path / "two" / "review.json").read_text()
    assert run(*REVIEW, "-o", tmp_path / "three", "-chk", "checkpoint_latest.pth") == 2
    said = capsys.readouterr().err
    assert "-tr MutualPartialTrainer " in said and "-chk checkpoint_latest.pth" in said


def test_what_cannot_be_reviewed(nnunet_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fabricate(nnunet_folders, DECISIONS, candidates=False)

    def refused(sentence: str, *more: object) -> None:
        assert run(*REVIEW, "-o", tmp_path / "review", *more) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "review").exists() and not list(tmp_path.glob(".review*"))

    refused("so an older version wrote it; delete that folder")
    refused("--max: it must be a whole number from 1", "--max", 0)
    refused(f"trained there: {TRAINING}", "-p", "Other")
    PseudoStore(store).write(
        "case_01", np.zeros((1, 9, 9, 9), np.int16), {}, [], candidates=np.zeros((1, 9, 9, 9), int)
    )
    refused("(case case_01 had the shape (9, 9, 9), now (16, 20, 18)); make the pseudo labels again")
    decisions = (store / "decisions.csv").read_text()
    (store / "decisions.csv").write_text(decisions.replace(",spleen,", ",../../spleen,"))
    refused("decisions.csv names the unknown label '../../spleen', so it was changed; make the pseudo labels again")
    (store / "decisions.csv").write_text(decisions)
    made_by = json.loads((store / "made_by.json").read_text())
    (store / "made_by.json").write_text(json.dumps({**made_by, "labels": {"background": 0, "liver": 2}}))
    refused("are no longer those of")
    (store / "decisions.csv").unlink()
    refused("make them with: nnunet_mutual pseudo_label 901 3d_fullres 0 -tr MutualPartialTrainer")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "review.csv").write_text("decided")
    assert run(*REVIEW, "-o", tmp_path / "full") == 2
    assert "is not empty; give -o a new folder" in capsys.readouterr().err
    assert (nnunet_folders / "nnUNet_results" / tiny.NAME / TRAINING).is_dir()


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SLA"])
def test_pictures_are_turned_as_dicom_shows_them(code: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(3, 4, 5)))
    image.SetSpacing((0.5, 2.0, 3.0))
    image = sitk.DICOMOrient(image, code)
    expected = sitk.DICOMOrient(image, "LPS")
    properties = {
        "spacing": image.GetSpacing()[::-1],
        "sitk_stuff": {"direction": image.GetDirection(), "origin": image.GetOrigin(), "spacing": image.GetSpacing()},
    }
    frame = frame_of(properties)
    np.testing.assert_array_equal(frame.turn(sitk.GetArrayFromImage(image)), sitk.GetArrayFromImage(expected))
    assert frame.spacing == expected.GetSpacing()[::-1]

    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    affine = nibabel.load(tmp_path / "image.nii.gz").affine
    other = frame_of({"spacing": properties["spacing"], "nibabel_stuff": {"original_affine": affine}})
    np.testing.assert_array_equal(other.transform, frame.transform)
    assert frame_of({"spacing": (1, 1, 1)}).transform is None
