"""Masks of another tool, taken over as a user would: `pseudo_label --from`, `review`, `accept`.

The tool is a network of the benchmark that learnt from other cases. Nobody looks at its masks: what the rules of
`pseudo_label` do not reject is accepted.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

from images import ENDING
from settings import BenchmarkError, Network, Schedule, Setting

TOOL = "a network of other cases"


def outline(setting: Setting, dataset: str) -> None:
    """Adds the masks that the protocol names (``masks``) to a prepared dataset, raw and preprocessed.

    Args:
        setting: the benchmark, its nnUNet_* variables set.
        dataset: of the protocol; its label maps, annotation table and preprocessed cases change.
    """
    rule, number = setting["datasets"][dataset]["masks"], str(setting["datasets"][dataset]["id"])
    raw = setting.work / "nnUNet_raw" / setting.dataset_name(dataset, 0)
    masks, review = (setting.work / f"{kind}_{dataset}" for kind in ("masks", "review"))
    predict(setting, rule, raw / "imagesTr", masks)
    shutil.rmtree(review, ignore_errors=True)
    command("pseudo_label", number, "--from", str(masks), "--tool", TOOL)
    command("review", number, "-o", str(review), "--all")
    accept_all(review / "review.csv", raw / "pseudo_labels" / "decisions.csv")
    command("accept", number, str(review / "review.csv"), "--weight", str(rule["weight"]))


def predict(setting: Setting, rule: dict[str, Any], images: Path, target: Path) -> None:
    """Trains the tool's network and has it outline all images of a folder, as `nnUNetv2_predict` would leave them."""
    import scoring
    import training
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    network = Network(**rule["network"])
    weights = training.train_network(setting, network, Schedule(rule["updates"], rule["rate"]), rule["seed"])
    model = scoring.Model(network, weights["network_weights"], setting["datasets"][network.dataset]["labels"])
    predictor, reader = scoring.make_predictor(setting, model), SimpleITKIO()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in sorted(images.glob(f"*_0000{ENDING}")):
        voxels, properties = reader.read_images([str(file)])
        outlined = predictor.predict_single_npy_array(voxels, properties, None, None, False)
        reader.write_seg(outlined, str(target / file.name.replace("_0000", "")), properties)
    learnt = setting.work / "nnUNet_raw" / setting.dataset_name(network.dataset, 0)
    shutil.copyfile(learnt / "dataset.json", target / "dataset.json")


def accept_all(review: Path, decisions: Path) -> None:
    """Fills in the reader's table without a look: ``accept``, and ``reject`` where `pseudo_label` has rejected."""
    from nnunet_mutual.batches.decisions import read_decisions

    rejected = {(one.case, one.label) for one in read_decisions(decisions) if one.verdict == "rejected"}
    with review.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["decision"] = "reject" if (row["case"], row["label"]) in rejected else "accept"
    with review.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def command(*words: str) -> None:
    """Runs a command of the package."""
    from nnunet_mutual.cli.parser import main

    if main(list(words)):
        raise BenchmarkError(f"nnunet_mutual {' '.join(words)} did not end well; its sentence stands above")
