"""States that cannot be used: stopped trainings, labels that changed, groups that lack a channel, stale soft labels."""

from __future__ import annotations

import json
from pathlib import Path

from bad_inputs.rows import (
    EXPORT,
    FOLD,
    MERGE,
    PRE,
    RAW,
    REPORT,
    REVIEW,
    SIMULATE,
    STORE,
    TOY,
    TRAIN,
    TRAINED,
    TWO,
    Spoil,
    both,
    edit,
    gone,
    nothing,
    removed,
    renamed,
    row,
    text,
)

KIND = "States that cannot be used"


def every_case(source: str, **entry: object) -> Spoil:
    """Gives every case of a dataset an entry of the table."""

    def spoil(root: Path) -> None:
        file = root / source / "dataset.json"
        content = json.loads(file.read_text())
        for case in content["mutual"]["cases"].values():
            case.update(entry)
        file.write_text(json.dumps(content))

    return spoil


ROWS = [
    row("a training that was not finished", gone(FOLD + "checkpoint_final.pth"), EXPORT, "checkpoint_final.pth", "--c"),
    row("a training that was not validated", gone(FOLD + "validation/summary.json"), EXPORT, "--val"),
    row(
        "a training without fingerprint", gone(TRAINED + "dataset_fingerprint.json"), EXPORT, "dataset_fingerprint.json"
    ),
    row("a training without plot", gone(FOLD + "progress.png"), EXPORT, "progress.png", "--c"),
    row("a training without plans", gone(TRAINED + "plans.json"), EXPORT, "plans.json"),
    row("a training without dataset.json", gone(TRAINED + "dataset.json"), REPORT, "dataset.json"),
    row("nothing to go on with", removed(FOLD), TRAIN + " --c", "checkpoint", "without --c"),
    row(
        "raw and preprocessed tables that differ",
        edit(RAW + "dataset.json", "mutual/cases/case_00/patient", "p"),
        TRAIN,
        "dataset.json",
        "nnunet_mutual sync",
    ),
    row(
        "labels that changed after planning",
        edit(RAW + "dataset.json", "labels/liver", 7),
        TRAIN,
        "labels",
        "dataset.json",
    ),
    row(
        "a case that the table lacks",
        both(*(edit(f"{place}dataset.json", "mutual/cases/case_00", ...) for place in (RAW, PRE))),
        TRAIN,
        "case_00",
        "annotate",
    ),
    row(
        "a label that nobody annotates",
        both(*(edit(f"{place}dataset.json", "mutual/sources/a/annotated", []) for place in (RAW, PRE))),
        TRAIN,
        "liver",
        "dataset.json",
    ),
    row(
        "a label that is drawn in part alone",
        both(
            *(
                edit(f"{p}dataset.json", "mutual/sources/a", {"annotated": [], "incomplete": ["liver"]})
                for p in (RAW, PRE)
            )
        ),
        TRAIN,
        "liver completely",
        "dataset.json",
    ),
    row(
        "nothing preprocessed",
        removed(PRE + "nnUNetPlans_3d_fullres"),
        TRAIN,
        "nnUNetPlans_3d_fullres",
        "nnunet_mutual plan_and_preprocess",
    ),
    row("not planned", removed(PRE), TRAIN, "nnunet_mutual plan_and_preprocess"),
    row("two datasets of one ID", text("nnUNet_raw/Dataset901_Second/dataset.json", "{}"), TRAIN, "901", "several"),
    row(
        "a training of modality groups without groups",
        nothing,
        "train 901 3d_fullres 0 -tr MutualCrossModalTrainer -device cpu",
        "groups",
    ),
    row("a group of which every case lacks a channel", every_case(TWO, missing=["FLAIR"]), "check 780", "FLAIR"),
    row(
        "a group of which no case is complete",
        both(every_case(TWO, missing=["FLAIR"]), gone(*(TWO + f"imagesTr/two_{n}_0001.nii.gz" for n in range(4)))),
        "plan_and_preprocess -d 780 -c 3d_fullres -np 1",
        "channel",
    ),
    row(
        "one group only",
        edit(TWO + "dataset.json", "mutual/modality_groups", {"T1": ["T1"]}),
        "plan_and_preprocess -d 780 -c 3d_fullres -np 1",
        "group",
    ),
    row(
        "a case that lacks a channel it does not declare",
        gone(TWO + "imagesTr/two_1_0001.nii.gz"),
        "plan_and_preprocess -d 780 -c 3d_fullres -np 1",
        "two_1",
        "missing",
    ),
    row(
        "no soft labels to train with",
        nothing,
        "train 901 3d_fullres 0 -tr SoftLabelTrainer -device cpu",
        "soft labels",
        "preprocess_unlabelled",
    ),
    row(
        "soft labels of no image here",
        both(renamed("soft/un_0.npz", "soft/a.npz"), renamed("soft/un_1.npz", "soft/b.npz")),
        "preprocess_unlabelled -d 901 --soft soft",
        "preprocess_unlabelled",
    ),
    row(
        "soft labels of other labels",
        edit("soft/dataset.json", "labels", {"background": 0, "lung": 1}),
        "preprocess_unlabelled -d 901 --soft soft",
        "liver",
    ),
    row(
        "no images for soft labels",
        removed(RAW + "imagesUn"),
        "pseudo_label 901 3d_fullres 0 -tr PartialTrainer -device cpu --soft -o new",
        "imagesUn",
    ),
    row("no pseudo labels to review", removed(STORE), REVIEW, "pseudo_label"),
    row("an unfinished review", gone("review/review.json"), "accept 901 review/review.csv", "review.json"),
    row("an export that exists", nothing, EXPORT.replace(" --name new", ""), "exists", "--name"),
    row("a dataset that exists", nothing, SIMULATE.replace("Dataset779_New", "Dataset778_Other"), "Dataset778_Other"),
    row("the same image in two cases of two datasets", nothing, MERGE.replace("778", "777"), "777"),
    row("a table without --force", nothing, "annotate 777 cases.csv", "--force"),
    row(
        "nnUNet_extTrainer names a folder that does not exist",
        nothing,
        TRAIN.replace("PartialTrainer", "MyTrainer"),
        "MyTrainer",
        environment=(("nnUNet_extTrainer", "/nowhere"),),
    ),
    row(
        "a dataset.json without a table, for groups of unknown channels",
        edit(TOY + "dataset.json", "mutual", ...),
        "plan -d 777 --groups a=CT b=MR",
        "MR",
    ),
]
