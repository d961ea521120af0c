"""Names that lead out of their folder, or are no text."""

from __future__ import annotations

import json
from pathlib import Path

from bad_inputs.rows import (
    ACCEPT,
    EVALUATE,
    EXPORT,
    MERGE,
    OTHER,
    PLANS,
    PREPROCESS,
    PSEUDO,
    RAW,
    SIMULATE,
    SOFT,
    TOY,
    TRAIN,
    TRAINED,
    Spoil,
    edit,
    nothing,
    renamed,
    row,
    text,
)

KIND = "Names"


def declared(key: str) -> Spoil:
    """Lists the cases in "dataset" of dataset.json, one of them under another name."""

    def spoil(root: Path) -> None:
        file = root / TOY / "dataset.json"
        content = json.loads(file.read_text())
        cases = {
            k: {"images": [f"imagesTr/{k}_0000.nii.gz"], "label": f"labelsTr/{k}.nii.gz"}
            for k in content["mutual"]["cases"]
        }
        cases[key] = cases.pop("toy_001")
        content["mutual"]["cases"][key] = content["mutual"]["cases"].pop("toy_001")
        file.write_text(json.dumps({**content, "dataset": cases}))

    return spoil


ESCAPE = "../../../escaped"
CAFE = b"caf\xe9_0000.nii.gz"
IMAGES = "imagesTr/toy_001_0000.nii.gz"
ROWS = [
    row("a case that leads out, simulated", declared(ESCAPE), SIMULATE, ESCAPE),
    row("a case with an absolute path, simulated", declared("/tmp/escaped"), SIMULATE, "/tmp/escaped"),
    row("a case that leads out, merged", declared(ESCAPE), MERGE, ESCAPE),
    row("a case that leads out, checked", declared(ESCAPE), "check 777", ESCAPE),
    row(
        "a file ending that leads out, simulated",
        edit(TOY + "dataset.json", "file_ending", "/../../x.nii.gz"),
        SIMULATE,
        "file_ending",
    ),
    row(
        "a file ending that leads out, exported",
        edit(TRAINED + "dataset.json", "file_ending", "/../x"),
        EXPORT,
        "file_ending",
    ),
    row(
        "a file ending that leads out, predicted",
        edit(RAW + "dataset.json", "file_ending", "/../x"),
        SOFT,
        "file_ending",
    ),
    row(
        "a data identifier that leads out",
        edit(PLANS, "configurations/3d_fullres/data_identifier", "../../escaped"),
        "preprocess_unlabelled -d 901",
        "data_identifier",
    ),
    row(
        "an absolute data identifier",
        edit(PLANS, "configurations/3d_fullres/data_identifier", "/tmp/escaped"),
        TRAIN,
        "data_identifier",
    ),
    row("a plans name that leads out", edit(PLANS, "plans_name", ESCAPE), TRAIN, "plans_name"),
    row("plans that lead out", nothing, TRAIN + " -p ../../nnUNetPlans", "../../nnUNetPlans"),
    row("a configuration that leads out", nothing, "export 901 ../3d_fullres -tr PartialTrainer -f 0", "../3d_fullres"),
    row("a trainer that leads out", nothing, "export 901 3d_fullres -tr ../PartialTrainer -f 0", "../PartialTrainer"),
    row("a checkpoint that leads out", nothing, PSEUDO + " -chk ../../../x.pth", "../../../x.pth"),
    row(
        "a new dataset that leads out",
        nothing,
        MERGE.replace("Dataset779_New", "../Dataset779_New"),
        "../Dataset779_New",
    ),
    row(
        "a journal that leads out",
        text(RAW + ".accept.json", '{"replaced": [["/tmp/escaped", null]]}'),
        ACCEPT,
        "/tmp/escaped",
    ),
    row(
        "a journal that leads out upwards",
        text(RAW + ".accept.json", '{"replaced": [["../../cases.csv", null]]}'),
        ACCEPT,
        "cases.csv",
    ),
    row(
        "a class of the plans that is no network",
        edit(TRAINED + "plans.json", "configurations/3d_fullres/architecture/network_class_name", "subprocess.Popen"),
        PSEUDO,
        "subprocess.Popen",
    ),
    row(
        "a class of the plans from elsewhere",
        edit(TRAINED + "plans.json", "configurations/3d_fullres/architecture/network_class_name", "model.x"),
        SOFT,
        "model.x",
    ),
    row(
        "an operation of the plans that is none",
        edit(TRAINED + "plans.json", "configurations/3d_fullres/architecture/arch_kwargs/conv_op", "os.system"),
        PSEUDO,
        "os.system",
    ),
    row("an image whose name is no UTF-8, checked", renamed(TOY + IMAGES, CAFE), "check 777", "caf", "UTF-8", "rename"),
    row("an image whose name is no UTF-8, merged", renamed(TOY + IMAGES, CAFE), MERGE, "caf", "UTF-8", "rename"),
    row(
        "an image whose name is no UTF-8, preprocessed",
        renamed(TOY + IMAGES, CAFE),
        PREPROCESS,
        "caf",
        "UTF-8",
        "rename",
    ),
    row(
        "a label map whose name is no UTF-8",
        renamed(OTHER + "labelsTr/other_1.nii.gz", b"caf\xe9.nii.gz"),
        MERGE,
        "caf",
        "UTF-8",
        "rename",
    ),
    row(
        "an unlabelled image whose name is no UTF-8",
        renamed(RAW + "imagesUn/un_0_0000.nii.gz", CAFE),
        SOFT,
        "caf",
        "UTF-8",
        "rename",
    ),
    row(
        "a prediction whose name is no UTF-8",
        renamed("predictions/case_05.nii.gz", b"caf\xe9.nii.gz"),
        EVALUATE,
        "caf",
        "UTF-8",
        "rename",
    ),
]
