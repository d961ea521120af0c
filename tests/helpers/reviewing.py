"""Pseudo labels of the tiny dataset without a training: what a store holds is said by the test."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tiny
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from training import SHORT, partial_block

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.pseudo import PseudoStore
from nnunet_mutual.cli.parser import main
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.generate import identity

TRAINING = "MutualPartialTrainer__nnUNetPlans__3d_fullres"
REVIEW = ["review", "901", "3d_fullres", "0", "-tr", "MutualPartialTrainer"]


def decided(case: str, label: str, accepted: bool = True, **changed: Any) -> Decision:
    """A decision that raises no doubt unless it says so."""
    values: dict[str, Any] = {"reason": "plausible: as usual" if accepted else "too large: 9 ml", "volume_ml": 1.0}
    values |= {"agreement": 0.99, "z": 0.1, "decided_share": 0.9, "networks": "0"}
    return Decision(case=case, source="a", label=label, accepted=accepted, **{**values, **changed})


def fabricate(
    root: Path, decisions: list[Decision], *, name: str = "pseudo_labels", candidates: bool = True, **options: Any
) -> Path:
    """Makes the tiny dataset and a store whose candidates are the truth; returns the folder of the store."""
    options = {"block": partial_block(), "settings": SHORT, **options}
    preprocessed = root / "nnUNet_preprocessed" / tiny.NAME
    if not preprocessed.exists():
        tiny.make_dataset(root, **options)
    content = json.loads((preprocessed / "dataset.json").read_text())
    table = AnnotationTable.from_dataset_json(content)
    folder = root / "nnUNet_results" / tiny.NAME / TRAINING
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    for file in ("dataset.json", "nnUNetPlans.json"):
        (folder / file.replace("nnUNetPlans", "plans")).write_bytes((preprocessed / file).read_bytes())
    store = PseudoStore(folder / "fold_0" / name)
    store.claim(identity([], [], FilterSettings(), content))
    codes = PseudoCodes.from_table(table)
    data = nnUNetDatasetBlosc2(str(preprocessed / "nnUNetPlans_3d_fullres"))
    keys = sorted({decision.case for decision in decisions})
    for key in keys:
        drawn = np.asarray(data.load_case(key)[1][:])
        full = truth(key)[None].astype(np.int16)
        own = [decision for decision in decisions if decision.case == key]
        store.write(key, codes.encode(drawn, np.full_like(drawn, -1)), {}, own, candidates=full if candidates else None)
    store.summarise(keys)
    return store.folder


def truth(key: str) -> np.ndarray:
    """(Z, Y, X) integers of everything that there is to see in a case."""
    return tiny.image_and_labels(int(key[-2:]))[1]


def run(*arguments: Any) -> int:
    """Runs the command line."""
    return main([str(argument) for argument in arguments])


def fill(table: Path, answers: Mapping[tuple[str, str], tuple[str, ...]]) -> None:
    """Writes decision (and corrected file) of (case, label) pairs into a review."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        answer = answers.get((row["case"], row["label"]), ("",))
        row.update(zip(("decision", "corrected_file"), answer, strict=False))
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def voxels(file: Path) -> np.ndarray:
    """Reads (Z, Y, X)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def raw_label(root: Path, key: str) -> np.ndarray:
    """Reads a label map of nnUNet_raw."""
    return voxels(root / "nnUNet_raw" / tiny.NAME / "labelsTr" / f"{key}.nii.gz")


def snapshot(root: Path) -> dict[str, str]:
    """Hashes of every file and the names of every folder below nnUNet_raw and nnUNet_preprocessed."""
    paths = [path for top in ("nnUNet_raw", "nnUNet_preprocessed") for path in sorted((root / top).rglob("*"))]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in paths
    }


def assert_preprocessed_as_by_nnunet(root: Path, key: str, configuration: str) -> None:
    """Exactly as nnU-Net preprocesses the new label map."""
    raw, preprocessed = (root / top / tiny.NAME for top in ("nnUNet_raw", "nnUNet_preprocessed"))
    manager = PlansManager(json.loads((preprocessed / "nnUNetPlans.json").read_text()))
    content = json.loads((raw / "dataset.json").read_text())
    chosen = manager.get_configuration(configuration)
    image, label = raw / "imagesTr" / f"{key}_0000.nii.gz", raw / "labelsTr" / f"{key}.nii.gz"
    data, seg, properties = DefaultPreprocessor(False).run_case([str(image)], str(label), manager, chosen, content)
    stored = nnUNetDatasetBlosc2(str(preprocessed / chosen.data_identifier)).load_case(key)
    np.testing.assert_array_equal(stored[0][:], data)
    np.testing.assert_array_equal(stored[1][:], seg)
    places = stored[3]["class_locations"]
    assert {c: len(v) for c, v in places.items()} == {c: len(v) for c, v in properties["class_locations"].items()}
    np.testing.assert_array_equal(voxels(preprocessed / "gt_segmentations" / f"{key}.nii.gz"), raw_label(root, key))
