"""Images and label maps: truncated, of another grid, not finite, named in another way."""

from __future__ import annotations

from typing import Any

import numpy as np
from raw_dataset import SHAPE

from bad_inputs.rows import (
    ACCEPT,
    EVALUATE,
    MERGE,
    OTHER,
    PREPROCESS,
    RAW,
    SIMULATE,
    SOFT,
    TOY,
    TWO,
    Row,
    both,
    cut,
    edit,
    gone,
    nothing,
    renamed,
    row,
    text,
    voxels,
)

KIND = "Images"
IMAGE, LABEL = TOY + "imagesTr/toy_002_0000.nii.gz", TOY + "labelsTr/toy_003.nii.gz"
PREDICTION = "predictions/case_05.nii.gz"
NOISE = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
LARGE = np.random.default_rng(2).integers(0, 4, (40, 50, 60)).astype(np.uint8)
NAN = np.where(NOISE > 1, np.nan, NOISE).astype(np.float32)


def truncated(share: float, file: str, command: str, *words: str, large: bool = True, **more: Any) -> Row:
    """A compressed file of integers of which the first part is there."""
    spoil = both(voxels(file, LARGE), cut(file, share)) if large else cut(file, share)
    name = file.rsplit("/", 1)[-1]
    return row(f"{share:.0%} of {name}, {command.split()[0]}", spoil, command, name, *words, **more)


ROWS = [
    truncated(0.9, LABEL, "check 777"),
    truncated(0.5, LABEL, "check 777"),
    truncated(0.9, LABEL, SIMULATE),
    truncated(0.9, LABEL, MERGE),
    truncated(0.9, LABEL, PREPROCESS),
    truncated(0.9, IMAGE, "check 777"),
    truncated(0.97, PREDICTION, EVALUATE, large=False),
    truncated(0.9, RAW + "labelsTr/case_00.nii.gz", ACCEPT, large=False),
    truncated(0.9, RAW + "imagesUn/un_0_0000.nii.gz", SOFT, large=False, leaves=("new",)),
    row("an empty image", text(IMAGE, ""), "check 777", "toy_002_0000.nii.gz"),
    row("an image that is text", text(IMAGE, "not an image"), "check 777", "toy_002_0000.nii.gz"),
    row("an image that is text, preprocessed", text(IMAGE, "not an image"), PREPROCESS, "toy_002_0000.nii.gz"),
    row("an image of NaN", voxels(IMAGE, NAN), "check 777", "toy_002_0000.nii.gz", "NaN"),
    row("an image of NaN, preprocessed", voxels(IMAGE, NAN), PREPROCESS, "toy_002_0000.nii.gz", "NaN"),
    row("an image of vectors", voxels(IMAGE, np.zeros((2, 4, 5, 6))), "check 777", "toy_002_0000", "own file"),
    row("an image of vectors, merged", voxels(IMAGE, np.zeros((2, 4, 5, 6))), MERGE, "toy_002_0000", "own file"),
    row("an image that is a folder", both(gone(IMAGE), text(f"{IMAGE}/x", "")), SIMULATE, "toy_002_0000", "no file"),
    row("an image that is a folder, preprocessed", both(gone(IMAGE), text(f"{IMAGE}/x", "")), PREPROCESS, "no file"),
    row("an image that the table lists is not there", gone(IMAGE), SIMULATE, "toy_002", "imagesTr"),
    row("another shape", voxels(LABEL, np.zeros((4, 5, 7), np.uint8)), "check 777", "toy_003"),
    row("another shape, simulated", voxels(LABEL, np.zeros((4, 5, 7), np.uint8)), SIMULATE, "toy_003"),
    row("another spacing", voxels(LABEL, np.zeros(SHAPE, np.uint8), Spacing=(1.0, 1.0, 2.0)), "check 777", "toy_003"),
    row("another origin", voxels(LABEL, np.zeros(SHAPE, np.uint8), Origin=(5.0, 0.0, 0.0)), "check 777", "toy_003"),
    row(
        "channels of another spacing",
        voxels(TWO + "imagesTr/two_1_0001.nii.gz", NOISE, Spacing=(1.0, 1.0, 1.01)),
        "check 780",
        "two_1",
    ),
    row("labels of 0.5", voxels(LABEL, np.full(SHAPE, 0.5, np.float32)), "check 777", "toy_003"),
    row(
        "a label that dataset.json does not know",
        voxels(LABEL, np.full(SHAPE, 9, np.uint8)),
        "check 777",
        "toy_003",
        "9",
    ),
    row("a label that nobody annotated", voxels(LABEL, np.full(SHAPE, 1, np.uint8)), "check 777", "toy_003", "liver"),
    row("no label map", gone(LABEL), "check 777", "toy_003.nii.gz"),
    row("no label map, preprocessed", gone(LABEL), PREPROCESS, "toy_003.nii.gz"),
    row("no image at all", edit(TOY + "dataset.json", "file_ending", ".nrrd"), "check 777", "imagesTr", "file_ending"),
    row("an image without _0000", renamed(IMAGE, TOY + "imagesTr/toy_002.nii.gz"), "check 777", "toy_002", "_0000"),
    row("a channel that is missing", gone(TWO + "imagesTr/two_1_0001.nii.gz"), "check 780", "two_1"),
    row("the first channel is missing", gone(TWO + "imagesTr/two_1_0000.nii.gz"), "check 780", "two_1"),
    row("labels 0, 1, 5", edit(TOY + "dataset.json", "labels/kidney", 5), "check 777", "labels"),
    row("a label map of a merge that is text", text(OTHER + "labelsTr/other_1.nii.gz", "x"), MERGE, "other_1.nii.gz"),
    row("a prediction of another shape", voxels(PREDICTION, np.zeros((3, 3, 3), np.uint8)), EVALUATE, "case_05"),
    row(
        "a prediction of unknown labels",
        voxels(PREDICTION, np.full((16, 20, 18), 77, np.uint8)),
        EVALUATE,
        "case_05",
        "77",
    ),
    row("no prediction", gone(PREDICTION), EVALUATE, "predictions", "file_ending"),
    row("a prediction that is missing", nothing, EVALUATE.replace("-f 0", ""), "case_00", "--chill"),
    row("a prediction that is empty", text(PREDICTION, ""), EVALUATE, "case_05"),
]
