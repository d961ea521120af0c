"""What a trial is asked that it cannot answer, and folders that it must not touch."""

from __future__ import annotations

import json

from bad_inputs.rows import PLANS, SPLITS, both, edit, nothing, row, text

KIND = "Trials"
TRIAL = "trial 901 3d_fullres -device cpu -o new"
_OPTIONS = {
    "dataset": "Dataset901_Tiny",
    "configuration": "3d_fullres",
    "plans": "nnUNetPlans",
    "fold": "0",
    "test": None,
    "arms": ["nnUNetTrainer", "PartialTrainer"],
    "seeds": 3,
    "keep": [],
    "labelled": [],
    "equal": "updates",
    "budget": None,
    "device": "cpu",
}
BEGUN = text("new/trial.json", json.dumps({"made by": "nnunet_mutual trial", "options": _OPTIONS}))
ROWS = [
    row(
        "a dataset that is not planned",
        nothing,
        "trial 777 3d_fullres -device cpu",
        "Dataset777_Toy",
        "plan_and_preprocess -d 777",
    ),
    row("a misspelt configuration", nothing, TRIAL.replace("3d_fullres", "3d_fulres"), "did you mean '3d_fullres'"),
    row("a second stage of a cascade", nothing, TRIAL.replace("3d_fullres", "3d_cascade_fullres"), "cascade", "try"),
    row(
        "an arm that does not exist", nothing, f"{TRIAL} --arms nnUNetTrainer PartialTrainr", "did you mean 'PartialTr"
    ),
    row("an arm of modality groups", nothing, f"{TRIAL} --arms nnUNetTrainer MutualCrossModalTrainer", "it knows"),
    row("the same arm twice", nothing, f"{TRIAL} --arms PartialTrainer PartialTrainer", "PartialTrainer twice"),
    row("one arm", nothing, f"{TRIAL} --arms PartialTrainer", "alone", "two or more"),
    row("one seed", nothing, f"{TRIAL} --seeds 1", "--seeds", "from 2"),
    row("a budget without unit", nothing, f"{TRIAL} --budget 12", "'12'", "12h"),
    row("a budget of nothing", nothing, f"{TRIAL} --budget 0h", "'0h'", "12h"),
    row("a fold that holds out nobody", nothing, f"{TRIAL} -f all", "-f all", "--test"),
    row("a fold that the splits lack, of a trial", nothing, f"{TRIAL} -f 7", "fold 7", "0 to"),
    row("a test dataset that does not exist", nothing, f"{TRIAL} --test 555", "555", "Dataset777_Toy"),
    row("tested on what is trained on", nothing, f"{TRIAL} --test 901", "--test", "trained on"),
    row("tested on a fold and on a dataset", nothing, f"{TRIAL} --test 777 -f 0", "-f", "--test", "one of them"),
    row("a test dataset of other channels", nothing, f"{TRIAL} --test 780", "T1, FLAIR", "same channels"),
    row("a test dataset that is not fully drawn", nothing, f"{TRIAL} --test 777", "toy_001", "does not draw", "tumour"),
    row("hiding labels of a partly drawn dataset", nothing, f"{TRIAL} --labelled 2", "not fully drawn", "--test"),
    row("the same number of labelled cases twice", nothing, f"{TRIAL} --labelled 2 2", "--labelled", "twice"),
    row("no labelled case", nothing, f"{TRIAL} --labelled 0", "--labelled", "from 1"),
    row(
        "more draws than datasets have numbers", nothing, f"{TRIAL} --seeds 999 --keep a:liver", "999", "998", "--seeds"
    ),
    row("splits with a case that is gone", edit(SPLITS, "0/val", ["gone"]), TRIAL, "splits_final.json", "gone"),
    row(
        "a setting that an arm does not know",
        edit(PLANS, "configurations/3d_fullres/mutual", {"num_epochs": 2, "consistency": 1.0}),
        f"{TRIAL} --arms PartialTrainer MeanTeacherTrainer",
        "consistency",
        "for PartialTrainer",
    ),
    row("a trial in a file", text("new", "mine"), TRIAL, "is a file", "-o"),
    row("a trial in a folder of others", text("new/mine.txt", "mine"), TRIAL, "not made by a trial", "-o"),
    row("a trial in nnUNet_raw", nothing, TRIAL.replace("-o new", "-o nnUNet_raw/new"), "your nnUNet_raw", "-o"),
    row("a trial with other options", BEGUN, f"{TRIAL} --seeds 4", "seeds: 3, now 4", "-o"),
    row("a record of a trial that is cut off", text("new/trial.json", '{"made by"'), TRIAL, "trial.json", "JSON"),
    row(
        "a record of a trial without options",
        text("new/trial.json", '{"made by": "nnunet_mutual trial"}'),
        TRIAL,
        "trial.json",
        "options",
        "-o",
    ),
    row("a run without a trial", nothing, f"{TRIAL} --job PartialTrainer_seed0", "no trial", "--list-jobs"),
    row("a device that is not there, of a trial", nothing, "trial 901 3d_fullres", "CUDA", "-device cpu"),
    row("a trial on a full disk", nothing, TRIAL, "free", limits="full"),
    row("a trial on a read-only disk", nothing, TRIAL, "permission", limits="read-only"),
    row(
        "a trial of modality groups",
        both(
            edit("nnUNet_raw/Dataset901_Tiny/dataset.json", "mutual/modality_groups", {"CT": ["CT"]}),
            edit("nnUNet_preprocessed/Dataset901_Tiny/dataset.json", "mutual/modality_groups", {"CT": ["CT"]}),
        ),
        TRIAL,
        "modality groups",
        "--compare",
    ),
]
