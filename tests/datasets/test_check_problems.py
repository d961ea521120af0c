"""Each kind of bad dataset: the sentence, the exit status, and that a warning alone does not fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking import VOXELS, broken, broken_label, entry, examine, nan, sentences
from raw_dataset import DRAWN, NAME, SHAPE, RawDataset

from nnunet_mutual.datasets.check import check

FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)


@pytest.fixture()
def raw(nnunet_folders: Path) -> RawDataset:
    dataset = RawDataset(nnunet_folders)
    dataset.declare()
    return dataset


def unlisted(raw: RawDataset) -> None:
    del raw.content["mutual"]["cases"]["toy_002"]
    raw.save()


def misspelt(raw: RawDataset) -> None:
    raw.content["mutual"]["cases"]["toy-2"] = raw.content["mutual"]["cases"].pop("toy_002")
    raw.save()


def nobody(raw: RawDataset) -> None:
    raw.declare({key: [name for name in names if name != "kidney"] for key, names in DRAWN.items()})
    for key in ("toy_003", "toy_004", "toy_010"):
        raw.label(key, {2: 3, 1: 3 if key == "toy_010" else 0})


def regions(order: Any, **labels: list[int]) -> Callable[[RawDataset], None]:
    labels = labels or {"liver": [1, 2, 3], "spleen": [2], "kidney": [3]}
    return lambda raw: raw.save(labels={"background": 0, **labels}, regions_class_order=order)


def two_spellings(raw: RawDataset) -> None:
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        shutil.copy(raw.folder / part / f"toy_002{ending}", raw.folder / part / f"Toy_2{ending}")
    raw.content["mutual"]["cases"]["Toy_2"] = raw.content["mutual"]["cases"]["toy_002"]
    raw.save(numTraining=6)


ERRORS: dict[str, tuple[Callable[[RawDataset], object], str]] = {
    "case not in the table": (unlisted, "table: 1 training case(s) are not in the table: toy_002; say what"),
    "case without image": (
        misspelt,
        "case toy-2: is in the table but has no image in imagesTr or imagesUn (did you mean 'toy_002'?)",
    ),
    "unknown label in a case": (entry("toy_001", annotated=["livr"]), "case toy_001: unknown label 'livr'"),
    "unknown source": (entry("toy_001", source="b"), "case toy_001: "),
    "unknown channel": (entry("toy_001", missing=["MR"]), "case toy_001: unknown channel 'MR'"),
    "voxels that nobody annotated": (
        lambda raw: raw.label("toy_001", {1: 9, 3: 4}),
        "labelsTr/toy_001.nii.gz: 4 voxel(s) of kidney, not listed as annotated in case toy_001; add kidney to",
    ),
    "label that no case annotates": (nobody, "label kidney: no case annotates it, so it cannot be learnt"),
    "other size": (
        lambda raw: raw.label("toy_001", {1: 9}, shape=(4, 5, 7)),
        "labelsTr/toy_001.nii.gz: the label map has 7 x 5 x 4 voxels, toy_001_0000.nii.gz has 6 x 5 x 4; resample it",
    ),
    "other spacing": (
        lambda raw: raw.label("toy_001", {1: 9}, spacing=(1, 1, 2.5)),
        "the label map has voxels of 1 x 1 x 2.5 mm, toy_001_0000.nii.gz of 1 x 1 x 1 mm",
    ),
    "shifted": (
        lambda raw: raw.label("toy_001", {1: 9}, origin=(0, 12, 0)),
        "the label map is shifted by 0 x 12 x 0 mm (x, y, z) against toy_001_0000.nii.gz",
    ),
    "turned": (
        lambda raw: raw.label("toy_001", {1: 9}, direction=FLIPPED),
        "the axes of the label map point in other directions than those of toy_001_0000.nii.gz; left and right may "
        "be swapped",
    ),
    "NaN": (nan, "imagesTr/toy_002_0000.nii.gz: 2 voxel(s) are NaN or infinite"),
    "image cannot be read": (broken, "imagesTr/toy_001_0000.nii.gz: is cut off or damaged ("),
    "label map cannot be read": (broken_label, "labelsTr/toy_001.nii.gz: is cut off or damaged ("),
    "interpolated label map": (
        lambda raw: raw.label("toy_001", {1: 9, 0.5: 2}, dtype=np.float32),
        "labelsTr/toy_001.nii.gz: 2 voxel(s) are not whole numbers (0.5), as after interpolation",
    ),
    "NaN in the label map": (
        lambda raw: raw.label("toy_001", {1: 9, np.nan: 2}, dtype=np.float32),
        "labelsTr/toy_001.nii.gz: 2 voxel(s) are NaN or infinite",
    ),
    "unknown value": (
        lambda raw: raw.label("toy_001", {1: 9, 7: 2}),
        "labelsTr/toy_001.nii.gz: holds values that dataset.json does not define: 7 (2 voxels); defined are 0 "
        "background, 1 liver",
    ),
    "negative value": (
        lambda raw: raw.label("toy_001", {1: 9, -1: 2}, dtype=np.int16),
        "holds values that dataset.json does not define: -1 (2 voxels)",
    ),
    "label map missing": (
        lambda raw: (raw.folder / "labelsTr" / "toy_003.nii.gz").unlink(),
        "labelsTr/toy_003.nii.gz: the label map of case toy_003 is missing; add it",
    ),
    "label map misnamed": (
        lambda raw: (raw.folder / "labelsTr" / "toy_003.nii.gz").rename(raw.folder / "labelsTr" / "toy_3.nii.gz"),
        "labelsTr/toy_003.nii.gz: the label map of case toy_003 is missing; rename labelsTr/toy_3.nii.gz",
    ),
    "channel missing": (
        lambda raw: raw.save(channel_names={"0": "CT", "1": "PET"}),
        "case toy_001: the image of channel 1 (PET) is missing; add it, or list PET under",
    ),
    "channel too many": (
        lambda raw: raw.image("toy_001", VOXELS, channel=1),
        "imagesTr/toy_001_0001.nii.gz: channel 1 is not in dataset.json, which has 1 (CT)",
    ),
    "no channel number": (
        lambda raw: (raw.folder / "imagesTr" / "toy.nii.gz").write_bytes(b""),
        "imagesTr/toy.nii.gz: no channel number; nnU-Net expects CASE_0000.nii.gz",
    ),
    "wrong numTraining": (lambda raw: raw.save(numTraining=4), '"numTraining" is 4, but there are 5 training cases'),
    "gap in values": (
        lambda raw: raw.save(labels={"background": 0, "liver": 1, "spleen": 2, "kidney": 4}),
        "dataset.json: the label values are [0, 1, 2, 4]; nnU-Net expects 0, 1, 2, ... without gaps",
    ),
    "ignore not highest": (
        lambda raw: raw.save(labels={"background": 0, "liver": 1, "spleen": 2, "kidney": 3, "ignore": 9}),
        '"ignore" has the value 9, nnU-Net expects the highest one, 4',
    ),
    "table without cases": (
        lambda raw: raw.save(mutual={**raw.block, "cases": None}),
        '"mutual.cases" of dataset.json must be an object',
    ),
    "source that is no name": (
        lambda raw: raw.save(mutual={**raw.block, "cases": {**raw.block["cases"], "toy_001": {"source": ["a"]}}}),
        "has the source ['a']",
    ),
    "modality group that no case has": (
        lambda raw: raw.save(
            mutual={
                **raw.block,
                "modality_groups": {"a": ["CT"]},
                "cases": {key: {**entry, "missing": ["CT"]} for key, entry in raw.block["cases"].items()},
            }
        ),
        'modality group a: every case lacks one of its channels (CT), so nothing could teach its network; correct "mis',
    ),
    "a single modality group": (
        lambda raw: raw.save(mutual={**raw.block, "modality_groups": {"CT": ["CT"]}}),
        "modality groups: ",
    ),
    "a block without version": (
        lambda raw: raw.save(mutual={key: value for key, value in raw.block.items() if key != "version"}),
        "has version None, this release reads version 1",
    ),
    "regions without order": (regions(None), "must list one value for each of the 3 regions, found None"),
    "an order that is a number": (regions(3), '"regions_class_order" must list one value for each of the 3 regions'),
    "an order of text": (regions(["1", "2", "3"]), "must list one value for each of the 3 regions"),
    "an order with a value of another region": (
        regions([1, 3, 3]),
        '"regions_class_order" gives spleen the value 3, which is not in that region; give one of [2]',
    ),
    "an order in which a region is painted over": (
        regions([2, 2, 3]),
        "gives liver the value 2, over which spleen is painted, so that liver is lost; give one of [1]",
    ),
    "regions in an order in which one is painted over": (
        regions([2, 1, 3], spleen=[2], liver=[1, 2], kidney=[3]),
        "gives spleen the value 2, over which liver is painted, so that spleen is lost; name liver before spleen in",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), ERRORS.values(), ids=ERRORS)
def test_error(
    raw: RawDataset, capsys: pytest.CaptureFixture[str], spoil: Callable[[RawDataset], object], sentence: str
) -> None:
    spoil(raw)
    status, report = examine(capsys)
    assert status == 2
    assert any(sentence in text for text in sentences(report, "error")), sentences(report, "error")
    assert check(777) == 2
    printed = capsys.readouterr().out
    assert sentence in printed
    assert f"Correct the errors, then repeat  nnunet_mutual check {NAME}" in printed


WARNINGS: dict[str, tuple[Callable[[RawDataset], object], str]] = {
    "annotated and not there": (
        lambda raw: raw.label("toy_003", {3: 4}),
        "label spleen: no voxel in 1 of the 3 cases that annotate it (toy_003); right if it is truly absent there",
    ),
    "label map of nobody": (
        lambda raw: raw.label("other", {1: 2}),
        "labelsTr/other.nii.gz: has no image in imagesTr and is not used",
    ),
    "other ending": (
        lambda raw: (raw.folder / "imagesTr" / "toy_020_0000.nii").write_bytes(b""),
        "imagesTr/toy_020_0000.nii: ignored by nnU-Net because it does not end in .nii.gz",
    ),
    "empty image": (
        lambda raw: raw.image("toy_001", np.zeros(SHAPE)),
        'imagesTr/toy_001_0000.nii.gz: every voxel is 0; if CT was not acquired, say "missing": ["CT"]',
    ),
    "two spellings": (two_spellings, "Toy_2, toy_002: nearly the same name; if this is one patient"),
}


@pytest.mark.parametrize(("change", "sentence"), WARNINGS.values(), ids=WARNINGS)
def test_warning(
    raw: RawDataset, capsys: pytest.CaptureFixture[str], change: Callable[[RawDataset], object], sentence: str
) -> None:
    change(raw)
    status, report = examine(capsys)
    assert sentences(report, "error") == []
    assert status == 0
    assert any(sentence in text for text in sentences(report, "warning")), sentences(report, "warning")
