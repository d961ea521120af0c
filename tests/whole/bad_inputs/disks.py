"""Disks that are full, folders that cannot be written."""

from __future__ import annotations

from bad_inputs.rows import (
    ACCEPT,
    EVALUATE,
    EXPORT,
    MERGE,
    PLAN,
    PREPROCESS,
    PSEUDO,
    RAW,
    REPORT,
    REVIEW,
    SIMULATE,
    SOFT,
    SUGGEST,
    TRAIN,
    nothing,
    row,
)

KIND = "Disks"
COMMANDS = {
    "annotate": "annotate 777 cases.csv --force",
    "merge": MERGE,
    "simulate": SIMULATE,
    "plan_and_preprocess": PREPROCESS,
    "plan": f"{PLAN} seed=1",
    "plan --groups": "plan -d 780 --groups T1=T1 both=T1,FLAIR",
    "preprocess_unlabelled --soft": "preprocess_unlabelled -d 901 --soft soft",
    "train": TRAIN,
    "pseudo_label": PSEUDO,
    "pseudo_label --soft": SOFT,
    "suggest": SUGGEST,
    "pseudo_label --from": "pseudo_label 901 --from predictions --map 1=liver 2=tumour 3=spleen",
    "review": REVIEW,
    "accept": ACCEPT,
    "evaluate": EVALUATE,
    "export": EXPORT,
    "report": REPORT,
}
PLACES = {"pseudo_label --soft": "new", "suggest": "write", "review": "new", "evaluate": "predictions"}
LEAVES = {
    "pseudo_label --soft": ("new",),
    "pseudo_label --from": (RAW + "pseudo_labels",),
    "evaluate": ("predictions/evaluation",),
}  # empty folders
ROWS = [
    row(f"{limits}: {name}", nothing, command, PLACES.get(name, "nnUNet"), limits=limits, leaves=LEAVES.get(name, ()))
    for limits in ("full", "read-only")
    for name, command in COMMANDS.items()
]
