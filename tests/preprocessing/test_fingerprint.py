"""The fingerprint: nnU-Net's own, without ignored voxels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from tiny import NAME, PLAIN, image_and_labels, write_nifti

from nnunet_mutual.preprocessing.fingerprint import FILE, MARK, FingerprintExtractor, counts_ignored

KEYS = [f"case_{i:02d}" for i in range(3)]


def write_raw(root: Path, *, ignore: bool, drawn: bool, blank: str | None = None) -> None:
    """Three cases in which a corner is metal, 3000 bright, and far away from everything else.

    Args:
        root: parent of nnUNet_raw.
        ignore: whether the dataset has an ignore label.
        drawn: whether the corner is drawn with it (or, without one, as a spleen).
        blank: a case that annotates nothing; all of it is ignored, if ``ignore``.
    """
    raw = root / "nnUNet_raw" / NAME
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    (root / "nnUNet_preprocessed").mkdir()
    for number, key in enumerate(KEYS):
        image, labels = image_and_labels(number)
        image[:5, :5, :5] = 3000
        if drawn:
            labels[:5, :5, :5] = 4 if ignore else 3
        if key == blank:
            labels[:] = 4 if ignore else 0
        write_nifti(image, raw / "imagesTr" / f"{key}_0000.nii.gz")
        write_nifti(labels, raw / "labelsTr" / f"{key}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": dict(PLAIN), "numTraining": 3, "file_ending": ".nii.gz"}
    if ignore:
        content["labels"]["ignore"] = 4  # type: ignore[index]
    (raw / "dataset.json").write_text(json.dumps(content))


def extract(extractor: Any, **options: Any) -> dict[str, Any]:
    """The file that an extractor writes."""
    one = extractor(901, 1, False, **options)
    one.show_progress_bar, one.num_foreground_voxels_for_intensitystats = False, 3000
    one.run(True)
    found: dict[str, Any] = json.loads(Path(str(fingerprint_extractor.nnUNet_preprocessed), NAME, FILE).read_text())
    return found


@pytest.mark.parametrize("blank", [None, "case_00"])
def test_without_ignore_label_it_is_stock(nnunet_folders: Path, blank: str | None) -> None:
    write_raw(nnunet_folders, ignore=False, drawn=True, blank=blank)
    assert extract(FingerprintExtractor, cases=KEYS) == extract(DatasetFingerprintExtractor)


@pytest.mark.parametrize("blank", [None, "case_00"])
def test_ignored_voxels_are_not_foreground(nnunet_folders: Path, tmp_path: Path, blank: str | None) -> None:
    write_raw(nnunet_folders, ignore=True, drawn=True, blank=blank)
    found, stock = extract(FingerprintExtractor, cases=KEYS), extract(DatasetFingerprintExtractor)
    bright = stock["foreground_intensity_properties_per_channel"]["0"]
    assert bright["max"] == 3000 and bright["mean"] > 100, "nnU-Net counts them: if not any more, this file can go"
    assert found["foreground_intensity_properties_per_channel"]["0"]["max"] < 10
    rewritten = tmp_path / "unknown is background"
    write_raw(rewritten, ignore=False, drawn=False, blank=blank)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            patch.setenv(name, str(rewritten / name))
        expected = extract(DatasetFingerprintExtractor)
    assert found.pop(MARK) is True
    assert found == expected, "as if the ignored voxels were background"


def test_only_chosen_cases_count(nnunet_folders: Path) -> None:
    write_raw(nnunet_folders, ignore=False, drawn=False)
    assert len(extract(FingerprintExtractor, cases=KEYS[:2])["spacings"]) == 2


def test_an_old_fingerprint_is_kept_and_known(nnunet_folders: Path) -> None:
    write_raw(nnunet_folders, ignore=True, drawn=True)
    old = extract(DatasetFingerprintExtractor)
    content = json.loads((nnunet_folders / "nnUNet_raw" / NAME / "dataset.json").read_text())
    assert counts_ignored(old, content)
    FingerprintExtractor(901, 1, cases=KEYS).run(overwrite_existing=False)
    file = nnunet_folders / "nnUNet_preprocessed" / NAME / FILE
    assert json.loads(file.read_text()) == old
    new = extract(FingerprintExtractor, cases=KEYS)
    assert not counts_ignored(new, content)
    assert np.isfinite(new["foreground_intensity_properties_per_channel"]["0"]["mean"])
    del content["labels"]["ignore"]
    assert not counts_ignored(old, content)
