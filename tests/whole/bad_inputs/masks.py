"""Masks of other tools that say nothing of these images, or nothing that can be understood."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tiny

from bad_inputs.rows import ACCEPT, PRE, PSEUDO, RAW, Row, both, cut, edit, nothing, row, text, voxels

KIND = "Masks of other tools"
MASKS = "pseudo_label 901 --from tool"
MADE = (RAW + "pseudo_labels",)  # cases that were whole before the bad one stay, for when the command is repeated
SHAPE = tiny.image_and_labels(0)[1].shape
WHOLE, NAN = np.ones(SHAPE, np.uint8), np.full(SHAPE, np.nan, np.float32)
NAMES = text("tool/dataset.json", json.dumps({"labels": tiny.PLAIN}))


def tool(name: str, array: Any, *words: str, options: str = "", **geometry: Any) -> Row:
    """A label map of a case whose spleen nobody drew."""
    spoil = both(NAMES, voxels("tool/case_00.nii.gz", array, **geometry))
    return row(name, spoil, MASKS + options, "case_00", *words, leaves=MADE)


def organ(name: str, array: Any, *words: str, options: str = "") -> Row:
    """A mask of the spleen, beside one of the tumour."""
    folder = "tool/case_00/"
    files = (voxels(f"{folder}{one}.nii.gz", array) for one in ("spleen", "tumour"))
    return row(name, both(text(f"{folder}note.txt", ""), *files), MASKS + options, *words, leaves=MADE)


def outlined(name: str, entry: Any, *words: str) -> Row:
    """What the annotation table says about outlines."""
    return row(name, edit(RAW + "dataset.json", "mutual/cases/case_00/outlined", entry), "check 901", *words)


ROWS = [
    row("a folder of masks that does not exist", nothing, "pseudo_label 901 --from nowhere", "nowhere", "no folder"),
    row("a folder of masks that is a file", nothing, "pseudo_label 901 --from cases.csv", "cases.csv", "no folder"),
    row("masks of other cases", NAMES, MASKS, "no mask of any training case", "case_00.nii.gz"),
    row("masks of no dataset", nothing, "pseudo_label 555 --from review", "no dataset has the ID 555"),
    row("masks for labels that every case annotates", NAMES, "pseudo_label 778 --from predictions", "no mask of any"),
    tool("a mask of another place", WHOLE, "another physical space", Origin=(50.0, 0, 0)),
    tool("a mask of another size", np.ones((40, 50, 60), np.uint8), "another physical space", "ends"),
    tool("a mask with oblique axes", WHOLE, "parallel", Direction=(0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)),
    tool("a mask with a value that nothing explains", WHOLE * 7, "holds the value 7", "--map 7=LABEL"),
    tool("a mask with halves", WHOLE * 0.5, "no whole numbers", "nearest"),
    tool("a mask of NaN", NAN, "NaN"),
    tool("a mask of one slice", WHOLE[0], "2 axes"),
    row(
        "a mask of several values for each voxel",
        both(NAMES, voxels("tool/case_00.nii.gz", np.stack([WHOLE, WHOLE]))),
        MASKS,
        "case_00",
        "several values for each voxel",
        leaves=MADE,
    ),
    row(
        "a mask that is cut short",
        both(NAMES, voxels("tool/case_00.nii.gz", WHOLE), cut("tool/case_00.nii.gz", 0.5)),
        MASKS,
        "case_00",
        "cut off or damaged",
        leaves=MADE,
    ),
    row(
        "probabilities that are none",
        both(NAMES, text("tool/case_00.npz", "x")),
        MASKS,
        "case_00.npz",
        leaves=MADE,
    ),
    row("names of a tool that are no labels", both(voxels("tool/case_00.nii.gz", WHOLE)), MASKS, "--map 1=liver"),
    row("a dataset.json beside masks that is a list", text("tool/dataset.json", "[]"), MASKS, "no mask of any"),
    organ("two masks that claim a voxel", WHOLE, "case_00", "tumour and by spleen", "contains"),
    organ("masks without a voxel", WHOLE * 0, "all are empty"),
    organ("a mask of an organ with two values", WHOLE * 2, "case_00", "holds the value 2", "0 and 1"),
    organ("an organ that the masks lack", WHOLE, "did you mean 'spleen'", options=" --map spleeen=spleen"),
    organ("a label that the dataset lacks", WHOLE, "did you mean 'spleen'", options=" --map spleen=spleeen"),
    organ("a name that means two labels", WHOLE, "twice", options=" --map spleen=spleen spleen=liver"),
    organ("a name without a label", WHOLE, "NAME=LABEL", options=" --map spleen"),
    organ("masks of which all are left out", WHOLE, "--map spleen=liver", options=" --map spleen= tumour="),
    organ("more tools than folders", WHOLE, "--tool", "2 times", options=" --tool A --tool B"),
    organ("a filter that the masks do not know", WHOLE, "did you mean 'max_z'", options=" --set max_zz=3"),
    row("names without masks", nothing, f"{PSEUDO} --map a=liver", "--from"),
    row(
        "masks beside a fold that was not trained",
        both(NAMES, voxels("tool/case_00.nii.gz", WHOLE)),
        "pseudo_label 901 3d_fullres 3 -tr PartialTrainer --from tool",
        "has no fold 3",
    ),
    row("masks and an output", nothing, "pseudo_label 901 --from predictions -o new", "-o"),
    row("neither masks nor a training", nothing, "pseudo_label 901", "--from FOLDER", "-tr TRAINER"),
    row("half a training", nothing, "pseudo_label 901 3d_fullres -tr PartialTrainer", "FOLD", "in part"),
    row("a review of no masks", nothing, "review 901 -o new", "--from FOLDER"),
    row("a review of a checkpoint without a training", nothing, "review 901 -chk checkpoint_best.pth -o new", "-chk"),
    row("a weight above 1", nothing, f"{ACCEPT} --weight 2", "--weight 2", "at most 1"),
    row("a weight of 0", nothing, f"{ACCEPT} --weight 0", "--weight", "positive"),
    row(
        "pseudo labels that are given and not there",
        edit(PRE + "nnUNetPlans.json", "configurations/3d_fullres/mutual/pseudo_labels", {"given": True}),
        "train 901 3d_fullres 1 -tr MutualPartialTrainer -device cpu",
        "pseudo_labels.given",
        "--from FOLDER",
    ),
    row(
        "pseudo labels that are given to groups",
        nothing,
        "plan -d 901 --name new --set pseudo_labels.given=true stage1_networks=groups",
        "stage1_networks",
        "leaves stage 1 out",
    ),
    row(
        "a weight of pseudo labels above 1",
        nothing,
        "plan -d 901 --name new --set pseudo_labels.weight=1.5",
        "pseudo_labels.weight",
        "at most 1",
    ),
    outlined("outlines that are a list", [], "outlined", "case_00"),
    outlined("outlines of a label that is not annotated", {"spleen": {}}, "'spleen'", "outlined"),
    outlined("an outline of weight 0", {"liver": {"weight": 0}}, '"liver"', "above 0"),
    outlined("an outline by a number", {"liver": {"by": 3}}, '"liver"', "text"),
    outlined("an outline with a slip", {"liver": {"wieght": 1}}, "did you mean 'weight'"),
]
