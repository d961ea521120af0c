"""Real registered modalities from raw images to stock predictions of one modality, as a user runs them.

    python benchmarks/real_channels.py --data FOLDER --out benchmarks/evidence/real_channels.json
    python benchmarks/real_channels.py --table

Three patients with multiple sclerosis and six with a tumour are too few for a claim of accuracy: this shows that the
commands of docs/crossmodal.md run on such channels, what each exported model sees, and how well it does in stock
nnU-Net what its network did in training. The held-out patient is predicted from the files of one group only. Images are
averaged to 2 mm (--shrink 1 leaves their 1 mm), since whole heads take a CPU too long.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings import CONFIGURATION, HERE, point_nnunet_to, read_json, write_json

EVIDENCE = HERE / "evidence" / "real_channels.json"
PLANS, TRAINER = "nnUNetPlansGroups", "MutualCrossModalTrainer"
NETWORK = {"patch_size": [48, 48, 48], "batch_size": 4, "features_per_stage": [8, 16, 32, 64]}
TRAINING = {
    "num_epochs": 30,
    "num_iterations_per_epoch": 10,
    "num_val_iterations_per_epoch": 2,
    "optimizer": "adamw",
    "initial_lr": 0.001,
    "seed": 0,
    "form": "contrast",
    "ramp": 0.4,
}


@dataclass(frozen=True)
class Patients:
    """A public dataset, its modality groups, and which of its cases are labelled, unlabelled and held out."""

    identity: int
    groups: dict[str, list[str]]
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    held_out: str

    def name(self, folder: str) -> str:
        return f"Dataset{self.identity}_{folder}"


DATASETS = {
    "mslesion": Patients(
        971,
        {"FLAIR": ["FLAIR"], "T1": ["T1"], "all": ["FLAIR", "T1", "T1post", "T2"]},
        ("patient19",),
        ("patient07",),
        "patient26",
    ),
    "brats_mini": Patients(
        972,
        {"FLAIR": ["FLAIR"], "T1c": ["T1c"], "both": ["FLAIR", "T1c"]},
        ("brats_2013_pat0001_1", "brats_2013_pat0002_1"),
        ("brats_2013_pat0003_1", "brats_2013_pat0004_1", "brats_2013_pat0005_1"),
        "brats_2013_pat0006_1",
    ),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("NNUNET_MUTUAL_DATA"), help="folder of the public datasets")
    parser.add_argument("--work", help="empty folder for datasets and results (default: a temporary one)")
    parser.add_argument("--shrink", type=int, default=2, help="voxels of each axis that are averaged (2)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table into README.md")
    arguments = parser.parse_args(argv)
    if arguments.table:
        import table

        table.put("real_channels", render())
        return 0
    if arguments.data is None:
        parser.error("--data must name the folder that holds mslesion/ and brats_mini/")
    data = Path(arguments.data).resolve()
    for folder in DATASETS:
        if not (data / folder / "imagesTr").is_dir():
            parser.error(f"{data / folder} holds no imagesTr; --data must name the folder that holds {folder}/")
    if arguments.work and Path(arguments.work).is_dir() and any(Path(arguments.work).iterdir()):
        parser.error(f"{arguments.work} is not empty; name a new folder with --work, or leave it out")
    with tempfile.TemporaryDirectory(prefix="nnunet_mutual_channels_") as temporary:
        result = run(data, Path(arguments.work or temporary).resolve(), arguments.shrink, arguments.device)
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(Path(arguments.out), result)
        print(f"Next: python {Path(__file__).name} --table")
    return 0


def run(data: Path, work: Path, shrink: int, device: str) -> dict[str, Any]:
    """Runs all commands on all datasets."""
    point_nnunet_to(work)
    os.environ["nnUNet_extTrainer"] = command("nnunet_mutual", "trainers").strip()
    found = {}
    for folder, patients in DATASETS.items():
        shrunk = work / "shrunk" / folder
        shrink_all(data / folder, shrunk, shrink)
        found[folder] = one(shrunk, work, patients, device)
    from training import hardware, versions

    return {
        "training": TRAINING,
        "network": NETWORK,
        "voxels_averaged_per_axis": shrink,
        "datasets": found,
        "hardware": {**hardware(), "device": device},
        "versions": versions(),
    }


def shrink_all(source: Path, target: Path, factor: int) -> None:
    """Averages images over cubes of voxels; of label maps the voxel in the middle stays."""
    import SimpleITK as sitk

    for folder, shrink in (("imagesTr", sitk.BinShrink), ("labelsTr", sitk.Shrink)):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for file in sorted((source / folder).glob("*.nii.gz")):
            image = sitk.ReadImage(str(file))
            image = image[tuple(slice(size - size % factor) for size in image.GetSize())]
            sitk.WriteImage(shrink(image, [factor] * image.GetDimension()), str(target / folder / file.name))
    write_json(target / "dataset.json", read_json(source / "dataset.json"))


def one(source: Path, work: Path, patients: Patients, device: str) -> dict[str, Any]:
    """Plans, trains, exports, and predicts the held-out patient with each group's model."""
    name, number = patients.name(source.name), str(patients.identity)
    content = write_raw(source, work / "nnUNet_raw" / name, patients)
    groups = [f"{group}={','.join(channels)}" for group, channels in patients.groups.items()]
    command("nnunet_mutual", "plan", "-d", number, "--groups", *groups)
    command("nnunet_mutual", "plan_and_preprocess", "-d", number, "-c", "3d_fullres")
    make_small(work / "nnUNet_preprocessed" / name / f"{PLANS}.json")
    common = (number, CONFIGURATION, "-p", PLANS, "-tr", TRAINER)
    command("nnUNetv2_train", *common[:2], "all", *common[2:], "-device", device)
    said = command("nnunet_mutual", "export", *common, "-f", "all")
    agreement = dict(re.findall(r"(\w+): ([\d.]+)% of the voxels", said))
    references = work / "references" / name
    link_labels(source, patients.held_out, references)
    write_json(references / "dataset.json", content)
    scores = {}
    for group, channels in patients.groups.items():
        images, output = work / "images" / name / group, work / "segmentations" / name / group
        link_images(source, patients.held_out, channels, images)
        model = (number, "-c", CONFIGURATION, "-p", f"{PLANS}_MutualCrossModal_{group}", "-f", "all")
        command("nnUNetv2_predict", "-d", *model, "-i", str(images), "-o", str(output), "-device", device, stock=True)
        scores[group] = {**measured(output, references), "agreement_percent": float(agreement[group])}
    return {
        "reference": content["reference"],
        "licence": content["licence"],
        "channels": list(content["channel_names"].values()),
        "cases": {"labelled": len(patients.labelled), "unlabelled": len(patients.unlabelled), "held out": 1},
        "groups": {group: {"channels": patients.groups[group], **score} for group, score in scores.items()},
    }


def write_raw(source: Path, target: Path, patients: Patients) -> dict[str, Any]:
    """Links images and labels into a raw dataset; returns the content of the public dataset.json."""
    content = read_json(source / "dataset.json")
    channels = list(content["channel_names"].values())
    for case in (*patients.labelled, *patients.unlabelled):
        link_images(source, case, channels, target / ("imagesTr" if case in patients.labelled else "imagesUn"))
    for case in patients.labelled:
        link_labels(source, case, target / "labelsTr")
    write_json(target / "dataset.json", {**content, "numTraining": len(patients.labelled)})
    return content


def link_images(source: Path, case: str, channels: list[str], target: Path) -> None:
    """Links channels of a case, numbered anew."""
    from preparation import link_images as link_channels

    known = list(read_json(source / "dataset.json")["channel_names"].values())
    target.mkdir(parents=True, exist_ok=True)
    link_channels(source / "imagesTr", case, [known.index(channel) for channel in channels], target)


def link_labels(source: Path, case: str, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    os.symlink(source / "labelsTr" / f"{case}.nii.gz", target / f"{case}.nii.gz")


def make_small(file: Path) -> None:
    """Adds the small network to the plans, with the settings of the training."""
    from preparation import small_configuration

    plans = read_json(file)
    plans["configurations"][CONFIGURATION] = small_configuration(plans, NETWORK, **TRAINING)
    write_json(file, plans)


def measured(segmentations: Path, references: Path) -> dict[str, Any]:
    """Returns Dice and precision of each label, null where they are not defined."""
    command("nnunet_mutual", "evaluate", str(segmentations), str(references), "--no-surface")
    labels = {str(i): label for label, i in read_json(references / "dataset.json")["labels"].items() if i}
    (case,) = read_json(segmentations / "evaluation" / "summary.json")["metric_per_case"]
    found: dict[str, Any] = {"dice": {}, "precision": {}}
    for key, label in labels.items():
        row = case["metrics"][key]
        predicted, drawn = row["TP"] + row["FP"], row["TP"] + row["FN"]
        found["dice"][label] = round(2 * row["TP"] / (predicted + drawn), 4) if predicted + drawn else None
        found["precision"][label] = round(row["TP"] / predicted, 4) if predicted else None
    return found


def command(name: str, *arguments: str, stock: bool = False) -> str:
    """Runs a command of this environment and returns what it prints; with ``stock``, nnU-Net alone.

    Raises:
        SystemExit: the command failed; its last lines stand above.
    """
    print("$", name, *arguments, flush=True)
    environment = {k: v for k, v in os.environ.items() if not (stock and k == "nnUNet_extTrainer")}
    full = [str(Path(sys.executable).with_name(name)), *arguments]
    done = subprocess.run(full, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(*done.stdout.splitlines()[-20:], sep="\n")
        raise SystemExit(f"error: {name} {arguments[0]} ended with exit status {done.returncode}")
    return done.stdout


def render() -> str:
    """Returns the table of the evidence."""
    if not EVIDENCE.is_file():
        return "not run"
    content = read_json(EVIDENCE)
    lines = [
        "| dataset | model | sees | voxels with the training's label | Dice | precision |",
        "|" + " --- |" * 6,
    ]
    for name, dataset in content["datasets"].items():
        for group, row in dataset["groups"].items():
            cells = [f"{row['agreement_percent']:.3f} %", *(_each(row[key]) for key in ("dice", "precision"))]
            lines.append(f"| {name} | {group} | {', '.join(row['channels'])} | " + " | ".join(cells) + " |")
    sources = "; ".join(f"{d['reference']}, {d['licence']}" for d in content["datasets"].values())
    return "\n".join([*lines, "", f"Data: {sources}."])


def _each(values: dict[str, float | None]) -> str:
    return ", ".join(f"{label} {'–' if value is None else format(value, '.2f')}" for label, value in values.items())


if __name__ == "__main__":
    sys.exit(main())
