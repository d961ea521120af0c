"""JSON of the wrong shape: plans, splits, summaries, dataset.json, logs, records."""

from __future__ import annotations

from typing import Any

from bad_inputs.rows import (
    ACCEPT,
    EVALUATE,
    EXPORT,
    FOLD,
    PLANS,
    PRE,
    PSEUDO,
    RAW,
    REPORT,
    REVIEW,
    SIMULATE,
    SPLITS,
    STORE,
    TOY,
    TRAIN,
    TRAINED,
    Row,
    both,
    edit,
    gone,
    row,
    text,
)

KIND = "JSON of the wrong shape"
DEEP = "[" * 100_000
DEEP_OBJECT = '{"a": ' * 100_000
CONFIGURATION = "configurations/3d_fullres/"
CONFIGURED = "configurations.3d_fullres"
SUMMARY = FOLD + "validation/summary.json"
LOG = FOLD + "mutual_log.jsonl"
PREPROCESS_UNLABELLED = "preprocess_unlabelled -d 901"


def plans(place: str, value: Any, *words: str, command: str = TRAIN) -> Row:
    """A value of the plans, which a training reads."""
    shown = "left out" if value is ... else repr(value)
    return row(f"plans: {place.replace('/', '.')} {shown}", edit(PLANS, place, value), command, *words)


def splits(name: str, content: str, *words: str, command: str = TRAIN) -> Row:
    """A whole splits_final.json."""
    return row(f"splits_final.json: {name}", text(SPLITS, content), command, "splits_final.json", *words)


def dataset(place: str, value: Any, *words: str, command: str = "check 777") -> Row:
    """A value of dataset.json of a raw dataset."""
    shown = "left out" if value is ... else repr(value)
    name = f"dataset.json: {place.replace('/', '.')} {shown}, {command.split()[0]}"
    return row(name, edit(TOY + "dataset.json", place, value), command, *words)


def summary(place: str, value: Any, *words: str, command: str = REPORT) -> Row:
    """A value of summary.json of a validation."""
    shown = "left out" if value is ... else repr(value)
    name = f"summary.json: {place.replace('/', '.')} {shown}, {command.split()[0]}"
    return row(name, edit(SUMMARY, place, value), command, "summary.json", *words)


ROWS = [
    plans(CONFIGURATION + "patch_size", "x", f"{CONFIGURED}.patch_size", "a list", "plan again"),
    plans(CONFIGURATION + "patch_size", [16, "x", 16], f"{CONFIGURED}.patch_size[1]", "whole number"),
    plans(CONFIGURATION + "patch_size", ..., CONFIGURED, "patch_size", "plan again"),
    plans(CONFIGURATION + "spacing", None, f"{CONFIGURED}.spacing", "a list"),
    plans(CONFIGURATION + "batch_size", 2.5, f"{CONFIGURED}.batch_size", "whole number"),
    plans(CONFIGURATION + "architecture", 5, f"{CONFIGURED}.architecture", "an object"),
    plans(CONFIGURATION + "architecture", ..., CONFIGURED, "architecture", "another nnU-Net"),
    plans(CONFIGURATION + "data_identifier", 3, f"{CONFIGURED}.data_identifier", "text"),
    plans(CONFIGURATION + "architecture/arch_kwargs", [], "arch_kwargs", "an object"),
    plans(CONFIGURATION + "batch_size", 0, "batch_size", "1 or more", "plan again"),
    plans(CONFIGURATION + "patch_size", [0, 16, 16], "patch_size", "plan again"),
    plans(CONFIGURATION + "patch_size", [16, 16], "3d_fullres", "plan again"),
    plans(CONFIGURATION + "spacing", [0, 1, 1], "spacing", "above 0"),
    plans(CONFIGURATION + "normalization_schemes", [], "normalization_schemes", "plan again"),
    plans(CONFIGURATION + "architecture/arch_kwargs/n_stages", 7, "nnUNetPlans.json", "cannot be built", "plan again"),
    plans(CONFIGURATION + "architecture/arch_kwargs/conv_op", "torch.nn.modules.conv.Conv2d", "conv_op", "plan again"),
    plans(CONFIGURATION + "architecture/arch_kwargs/strides", [[1, 1, 1], [5, 5, 5], [2, 2, 2]], "strides"),
    plans("image_reader_writer", "Foo", "image_reader_writer", "SimpleITKIO", command=PREPROCESS_UNLABELLED),
    plans("transpose_forward", [0, 0, 1], "transpose_forward", "plan again"),
    plans("foreground_intensity_properties_per_channel", 5, "foreground_intensity", "plan again"),
    plans("configurations", [], "configurations", "an object", "plan again"),
    plans("configurations", ..., "configurations", "plan again"),
    plans("configurations/3d_fullres", 5, CONFIGURED, "an object"),
    plans("configurations/2d", "x", "configurations.2d", "an object", command="plan -d 901 --name a --set seed=1"),
    plans("plans_name", 5, "plans_name", "text", command=PREPROCESS_UNLABELLED),
    plans("transpose_forward", "012", "transpose_forward", "a list", command=PREPROCESS_UNLABELLED),
    plans(CONFIGURATION + "inherits_from", "3d_none", "3d_none", "it has:"),
    plans(
        CONFIGURATION + "inherits_from", "3d_fullres", "goes in a circle", command="plan -d 901 --name a --set seed=1"
    ),
    row("plans of nnU-Net v1", text(PLANS, '{"plans_per_stage": {}, "num_stages": 1}'), TRAIN, "nnU-Net v1", "plan"),
    row(
        "plans of nnU-Net v1 for a new configuration",
        text(PLANS, '{"plans_per_stage": {}}'),
        "plan -d 901 --name a --set seed=1",
        "nnUNetPlans.json",
        "nnU-Net v1",
    ),
    row("plans that are a list", text(PLANS, "[]"), PREPROCESS_UNLABELLED, "nnUNetPlans.json", "object"),
    row(
        "plans that are nested deeply",
        text(PLANS, DEEP_OBJECT),
        PREPROCESS_UNLABELLED,
        "nnUNetPlans.json",
        "nested too deeply",
    ),
    row("plans that are empty", text(PLANS, ""), TRAIN, "nnUNetPlans.json", "not valid JSON"),
    row("plans that are null", text(PLANS, "null"), TRAIN, "nnUNetPlans.json", "object"),
    row("plans that are not UTF-8", text(PLANS, b'{"a": "\xe9"}'), TRAIN, "nnUNetPlans.json", "UTF-8"),
    row(
        "plans of a training without configurations",
        edit(TRAINED + "plans.json", "configurations", None),
        EXPORT,
        "plans.json",
        "configurations",
    ),
    row("plans of a training that are text", text(TRAINED + "plans.json", '"x"'), PSEUDO, "plans.json", "object"),
    row(
        "plans of a training without architecture",
        edit(TRAINED + "plans.json", CONFIGURATION + "architecture", ...),
        EXPORT,
        "plans.json",
        "architecture",
    ),
    splits("a number", "5", "a list", "delete it"),
    splits("an object", '{"train": [], "val": []}', "a list", "delete it"),
    splits("no fold", "[]", "delete it"),
    splits("a fold without val", '[{"train": ["case_00"]}]', "val", "delete it"),
    splits("cases that are numbers", '[{"train": [1], "val": [2]}]', "[0].train[0]", "delete it"),
    splits("nested deeply", DEEP, "nested too deeply"),
    splits("null for evaluate", "null", "a list", command=EVALUATE),
    splits("a fold that is text, for report", '["x"]', "[0]", command=REPORT),
    splits("cases that are unknown", '[{"train": ["case_77"], "val": ["case_01"]}]', "case_77", "delete"),
    splits("no training case", '[{"train": [], "val": ["case_01"]}]', "train", "delete"),
    splits("no validation case", '[{"train": ["case_00"], "val": []}]', "val", "delete"),
    dataset("labels", None, "labels", "object"),
    dataset("labels", ["liver"], "labels", "object"),
    dataset("labels/liver", "one", "labels", "'one'"),
    dataset("labels/liver", 1.5, "labels", "1.5"),
    dataset("channel_names", 5, "channel_names", "object"),
    dataset("channel_names", {"0": ["CT"]}, "channel_names", '"0": name'),
    dataset("channel_names", {"1": "CT"}, "channel_names", '"0": name'),
    dataset("channel_names", {}, "channel_names", '"0": name', command=SIMULATE),
    dataset("labels/ignore", [4], "ignore", "whole number"),
    dataset("labels/background", 1, "background", "correct it"),
    dataset("overwrite_image_reader_writer", "Foo", "overwrite_image_reader_writer", "SimpleITKIO"),
    dataset("overwrite_image_reader_writer", 5, "overwrite_image_reader_writer", "SimpleITKIO", command=SIMULATE),
    dataset("file_ending", None, "dataset.json", "file_ending"),
    dataset("file_ending", ".gz", "numbered ones ending in .nii.gz", "file_ending"),
    dataset("file_ending", "nii.gz", "numbered ones ending in .nii.gz", "file_ending"),
    dataset("dataset", {}, '"dataset"', "lists no case"),
    dataset("dataset", {"toy_001": {"images": "a_0000.nii.gz", "label": "a"}}, "toy_001", '"images": [...]'),
    dataset("file_ending", ..., "dataset.json", "file_ending", command=SIMULATE),
    dataset("mutual", [], '"mutual"', "object"),
    dataset("mutual/cases", None, "cases", "object"),
    dataset("mutual/cases", None, "cases", "object", command=SIMULATE),
    dataset("mutual/cases", ["toy_001"], "cases", "object"),
    dataset("mutual/cases", 5, "cases", "object", command="merge 777 778 Dataset779_New"),
    dataset("mutual/sources", ["a"], "sources", "object"),
    dataset("mutual/version", "1", "version", '"version": 1'),
    dataset("mutual/cases/toy_001", "liver", "toy_001", "object"),
    dataset("mutual/cases/toy_001/annotated", "liver", "toy_001", "list"),
    dataset("mutual/cases/toy_001/patient", 5, "toy_001", "quotes"),
    dataset("mutual/cases/toy_001/source", ["a"], "toy_001", "declared sources"),
    dataset("mutual/cases/toy_001/source", {}, "toy_001", "declared sources", command=SIMULATE),
    dataset("mutual/cases/toy_001/annotated", [["liver"]], "toy_001", "list of label names"),
    dataset("mutual/cases/toy_001/incomplete", ["livr"], "toy_001", "incomplete", "did you mean 'liver'"),
    dataset("mutual/cases/toy_001/incomplete", ["liver"], "toy_001", '"incomplete"', '"annotated"', "keep one"),
    dataset("mutual/modality_groups", {"a": [["CT"]]}, "modality group", "list of channel names"),
    dataset("mutual/may_overlap", [["liver", 5]], "may_overlap"),
    dataset("dataset", [1], "dataset", "object"),
    dataset("dataset", {"toy_001": {"images": 5, "label": "x"}}, "toy_001", "images"),
    dataset("numTraining", "five", "numTraining"),
    row(
        "dataset.json nested deeply",
        text(TOY + "dataset.json", DEEP_OBJECT),
        "check 777",
        "dataset.json",
        "nested too deeply",
    ),
    row(
        "dataset.json with a number of 5000 digits",
        text(TOY + "dataset.json", '{"a": ' + "9" * 5000 + "}"),
        "check 777",
        "dataset.json",
        "cannot be read",
    ),
    row(
        "dataset.json that lists a key twice",
        text(TOY + "dataset.json", '{"labels": {}, "labels": {}}'),
        SIMULATE,
        "dataset.json",
        "twice",
    ),
    row(
        "dataset.json cut off",
        text(TOY + "dataset.json", '{"labels": {'),
        "merge 777 778 Dataset779_New",
        "dataset.json",
        "not valid JSON",
    ),
    row(
        "dataset.json that is a folder",
        both(gone(TOY + "dataset.json"), text(TOY + "dataset.json/x", "")),
        "check 777",
        "dataset.json",
    ),
    row(
        "dataset.json of a training without labels",
        edit(TRAINED + "dataset.json", "labels", ...),
        EXPORT,
        "labels",
        "dataset.json",
    ),
    row(
        "dataset.json of a training that is a list",
        text(TRAINED + "dataset.json", "[]"),
        PSEUDO,
        "dataset.json",
        "object",
    ),
    row(
        "dataset.json of the preprocessed dataset without labels",
        edit(PRE + "dataset.json", "labels", 5),
        TRAIN,
        "labels",
        "dataset.json",
    ),
    row(
        "dataset.json of soft labels without labels",
        edit("soft/dataset.json", "labels", []),
        "preprocess_unlabelled -d 901 --soft soft",
        "labels",
        "dataset.json",
    ),
    summary("metric_per_case", 5, "metric_per_case", "--val"),
    summary("metric_per_case", ..., "metric_per_case", "--val", command=EXPORT),
    summary("metric_per_case/0", "x", "metric_per_case[0]", "--val"),
    summary("metric_per_case/0/metrics", [], "metric_per_case[0].metrics", "--val", command=EXPORT),
    summary("metric_per_case/0/metrics/1/Dice", "high", "metric_per_case[0].metrics.1.Dice", "--val"),
    summary("metric_per_case/0/metrics/1/TP", ..., "TP", "--val", command=EXPORT),
    summary("metric_per_case/0/prediction_file", None, "prediction_file", "--val"),
    row("summary.json cut off", text(SUMMARY, '{"metric_per_case": ['), EXPORT, "summary.json", "not valid JSON"),
    row("summary.json nested deeply", text(SUMMARY, DEEP), REPORT, "summary.json", "nested too deeply"),
    row("a log whose lines are numbers", text(LOG, "5\n"), REPORT, "mutual_log.jsonl", "line 1"),
    row("a log without epochs", text(LOG, '{"loss": 1.0}\n'), REPORT, "mutual_log.jsonl", "epoch"),
    row(
        "a log whose terms are a list",
        text(LOG, '{"epoch": 0, "loss": 1.0, "terms": [1]}\n'),
        REPORT,
        "mutual_log.jsonl",
        "terms",
    ),
    row("a log whose loss is text", text(LOG, '{"epoch": 0, "loss": "low"}\n'), REPORT, "mutual_log.jsonl", "loss"),
    row("a log nested deeply", text(LOG, DEEP + "\n"), REPORT, "mutual_log.jsonl", "line 1"),
    row(
        "settings of a training that are a list",
        text(TRAINED + "mutual_settings.json", "[]"),
        REPORT,
        "mutual_settings.json",
        "object",
    ),
    row(
        "settings of a training without a number",
        edit(TRAINED + "mutual_settings.json", "num_epochs", "x"),
        REPORT,
        "mutual_settings.json",
        "num_epochs",
    ),
    row("debug.json cut off", text(FOLD + "debug.json", "{"), REPORT, "debug.json", "not valid JSON"),
    row("debug.json that is a list", text(FOLD + "debug.json", "[1]"), REPORT, "debug.json", "object"),
    row(
        "versions in a log that are no JSON",
        text(FOLD + "training_log_2099_1_1.txt", "x Versions: {oops\n"),
        REPORT,
        "training_log_2099_1_1.txt",
        "Versions",
    ),
    row(
        "a record of pseudo labels without settings",
        edit(STORE + "made_by.json", "settings", ...),
        REVIEW,
        "made_by.json",
        "settings",
    ),
    row(
        "a record of pseudo labels that is a list", text(STORE + "made_by.json", "[]"), REVIEW, "made_by.json", "object"
    ),
    row(
        "a record of pseudo labels of the wrong settings",
        edit(STORE + "made_by.json", "settings", {"low": "x"}),
        REVIEW,
        "made_by.json",
        "low",
    ),
    row(
        "a record of pseudo labels without labels",
        edit(STORE + "made_by.json", "labels", ...),
        REVIEW,
        "made_by.json",
        "labels",
    ),
    row(
        "review.json without candidates",
        edit("review/review.json", "candidates", ...),
        ACCEPT,
        "review.json",
        "review again",
    ),
    row(
        "review.json whose training is text",
        edit("review/review.json", "training", "x"),
        ACCEPT,
        "review.json",
        "review again",
    ),
    row("review.json that is a list", text("review/review.json", "[]"), ACCEPT, "review.json", "object"),
    row("a journal that is a list", text(RAW + ".accept.json", "[]"), ACCEPT, ".accept.json"),
    row("a journal without entries", text(RAW + ".accept.json", '{"replaced": 5}'), ACCEPT, ".accept.json"),
    row("a journal nested deeply", text(RAW + ".accept.json", DEEP), ACCEPT, ".accept.json", "nested too deeply"),
    row("a record of a demo that is a list", text("demo/demo.json", "[]"), "demo --folder demo", "demo", "--folder"),
    row(
        "a record of a demo without steps",
        text("demo/demo.json", '{"made by": "nnunet_mutual demo", "settings": 5}'),
        "demo --folder demo",
        "demo.json",
        "settings",
    ),
    row(
        "a record of a demo whose steps are text",
        text("demo/demo.json", '{"made by": "nnunet_mutual demo", "settings": {}, "finished": "all"}'),
        "demo --folder demo",
        "demo.json",
        "finished",
        "to begin anew",
    ),
    row(
        "a fingerprint that is a list",
        both(text("nnUNet_preprocessed/Dataset777_Toy/dataset_fingerprint.json", "[]")),
        "plan_and_preprocess -d 777 -c 3d_fullres -np 1",
        "dataset_fingerprint.json",
    ),
    row(
        "a fingerprint cut off",
        both(text("nnUNet_preprocessed/Dataset777_Toy/dataset_fingerprint.json", '{"spacings": [')),
        "plan_and_preprocess -d 777 -c 3d_fullres -np 1",
        "dataset_fingerprint.json",
        "--clean",
    ),
    row(
        "a fingerprint whose spacings are a number",
        both(text("nnUNet_preprocessed/Dataset777_Toy/dataset_fingerprint.json", '{"spacings": 5}')),
        "plan_and_preprocess -d 777 -c 3d_fullres -np 1",
        "dataset_fingerprint.json",
        "--clean",
    ),
    row(
        "a fingerprint of a training whose spacings are text",
        edit(TRAINED + "dataset_fingerprint.json", "spacings", "x"),
        EXPORT,
        "dataset_fingerprint.json",
        "spacings",
        "plan_and_preprocess",
    ),
]
