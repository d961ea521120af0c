"""Datasets of many small cases: no two images are equal, the label maps of a source are one file with many names."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from settings import write_json

SOURCES = 20
FOLD = 0
TRAINING = {"trainer": "PartialTrainer", "plans": "nnUNetPlans", "configuration": "3d_fullres", "fold": str(FOLD)}


class Dataset:
    """One dataset: source s draws every second label, beginning at the s-th.

    Args:
        root: holds nnUNet_raw and the other two.
        number: of the dataset.
        cases: how many.
        labels: how many.
        size: edge of the images, voxels.
    """

    def __init__(self, root: Path, number: int, cases: int, labels: int, size: int):
        self.root, self.name, self.size = root, f"Dataset{number}_Scale", size
        self.raw = root / "nnUNet_raw" / self.name
        self.keys = [f"d{number}_{i:05d}" for i in range(cases)]
        self.labels = [f"organ{i:03d}" for i in range(labels)]

    def drawn(self, source: int) -> list[str]:
        """Labels that a source draws."""
        return [label for i, label in enumerate(self.labels) if (i + source) % 2 == 0]

    def write(self) -> None:
        """Writes images, label maps, dataset.json without a table, and the table as a CSV beside it."""
        for folder in ("imagesTr", "labelsTr"):
            (self.raw / folder).mkdir(parents=True)
        for source in range(SOURCES):
            place = self.raw / f"source{source}.nii.gz"
            self._write_image(place, self._label_map(self.drawn(source)))
        for i, key in enumerate(self.keys):
            image = np.zeros((self.size,) * 3, np.int16)
            image.flat[:3] = i // 1000, 1 + i % 1000, int(self.name[7:10])
            self._write_image(self.raw / "imagesTr" / f"{key}_0000.nii.gz", image)
            os.link(self.raw / f"source{i % SOURCES}.nii.gz", self.raw / "labelsTr" / f"{key}.nii.gz")
        write_json(self.raw / "dataset.json", self.content())
        with self.table.open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["case", "source", "patient", *self.labels])
            for i, key in enumerate(self.keys):
                drawn = {*self.drawn(i % SOURCES)}
                words = ["yes" if label in drawn else "no" for label in self.labels]
                rows.writerow([key, f"source{i % SOURCES}", f"{self.name[7:10]}_patient{i // 2}", *words])

    @property
    def table(self) -> Path:
        """Who drew what, for ``annotate``."""
        return self.root / f"{self.name}.csv"

    def content(self) -> dict[str, Any]:
        """Of dataset.json, without a table."""
        return {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **{label: i + 1 for i, label in enumerate(self.labels)}},
            "numTraining": len(self.keys),
            "file_ending": ".nii.gz",
        }

    def _label_map(self, drawn: list[str]) -> np.ndarray:
        """A row of voxels of each label."""
        voxels = np.zeros((self.size,) * 3, np.uint8)
        rows = voxels.reshape(-1, self.size)
        for label in drawn:
            rows[self.labels.index(label)] = self.labels.index(label) + 1
        return voxels

    def _write_image(self, place: Path, voxels: np.ndarray) -> None:
        image = nibabel.Nifti1Image(voxels.T, np.eye(4))
        place.write_bytes(gzip.compress(image.to_bytes(), 1))

    def write_review(self) -> Path:
        """Writes a filled review: of each case the first label that it does not annotate was accepted."""
        folder = self.root / f"review_{self.name}"
        (folder / "candidates").mkdir(parents=True)
        shared = folder / "mask.nii.gz"
        mask = np.zeros((self.size,) * 3, np.uint8)
        mask[-1] = 1
        self._write_image(shared, mask)
        sha256 = hashlib.sha256(shared.read_bytes()).hexdigest()
        rows, candidates = [["case", "label", "decision", "corrected_file", "comment"]], []
        for i, key in enumerate(self.keys):
            label = self.drawn(i % SOURCES + 1)[0]
            file = f"candidates/{key}.nii.gz"
            os.link(shared, folder / file)
            rows.append([key, label, "accept", "", ""])
            candidates.append({"case": key, "label": label, "file": file, "sha256": sha256})
        with (folder / "review.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
        write_json(
            folder / "review.json", {"dataset": self.name, "training": self.training(), "candidates": candidates}
        )
        return folder / "review.csv"

    def training(self) -> dict[str, str]:
        """What names the training of :meth:`write_training`."""
        return {"dataset": self.name, **TRAINING}

    def write_training(self, epochs: int) -> None:
        """Writes the folder of a training of fold 0, of which every fifth case was validated, without checkpoints."""
        named = TRAINING
        base = self.root / "nnUNet_results" / self.name
        base /= f"{named['trainer']}__{named['plans']}__{named['configuration']}"
        fold = base / f"fold_{FOLD}"
        (fold / "validation").mkdir(parents=True)
        (base / "dataset.json").write_bytes((self.raw / "dataset.json").read_bytes())
        plans = {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "patch_size": [self.size] * 3,
            "batch_size": 2,
            "spacing": [1.0] * 3,
            "architecture": {"network_class_name": "any", "arch_kwargs": {}, "_kw_requires_import": []},
        }
        write_json(
            base / "plans.json",
            {"plans_name": named["plans"], "dataset_name": self.name, "configurations": {"3d_fullres": plans}},
        )
        held_out = self.keys[::5]
        preprocessed = self.root / "nnUNet_preprocessed" / self.name
        preprocessed.mkdir(parents=True)
        train = [key for i, key in enumerate(self.keys) if i % 5]
        write_json(preprocessed / "splits_final.json", [{"train": train, "val": held_out}])
        lines = [{"epoch": e, "loss": 1 / (e + 1), "terms": {"supervised": 1 / (e + 1)}} for e in range(epochs)]
        (fold / "mutual_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = {"metric_per_case": [self._scores(key) for key in held_out], "mean": {}, "foreground_mean": {}}
        write_json(fold / "validation" / "summary.json", summary)

    def _scores(self, key: str) -> dict[str, Any]:
        own = {*self.drawn(int(key[-5:]) % SOURCES)}
        counts = {"TP": 80, "FP": 20, "FN": 20, "TN": 1000, "n_ref": 100, "n_pred": 100}
        known = {**counts, "Dice": 0.8 + 0.001 * (int(key[-5:]) % 97), "IoU": 0.7}
        unknown = {**dict.fromkeys(counts, 0), "Dice": None, "IoU": None}
        metrics = {str(i + 1): known if label in own else unknown for i, label in enumerate(self.labels)}
        return {"prediction_file": f"{key}.nii.gz", "reference_file": f"{key}.nii.gz", "metrics": metrics}
