"""What the tests of unlabelled images share: a small preprocessed dataset with images in imagesUn."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny import NAME, image_and_labels, make_dataset, write_nifti

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import main
from nnunet_mutual.preprocessing.unlabelled import UNLABELLED, unlabelled_dataset

DATA = "nnUNetPlans_3d_fullres"


def add_unlabelled(root: Path, images: int) -> None:
    """Adds images without labels, un_0, un_1, ... to the raw tiny dataset."""
    folder = root / "nnUNet_raw" / NAME / "imagesUn"
    folder.mkdir()
    for number in range(images):
        write_nifti(image_and_labels(20 + number)[0], folder / f"un_{number}_0000.nii.gz")


class Tiny:
    """A small preprocessed dataset with images in imagesUn."""

    def __init__(self, root: Path, *, images: int = 3, **options: Any) -> None:
        self.root = root
        self.preprocessed = make_dataset(root, cases=2, **options)
        self.raw = root / "nnUNet_raw" / NAME
        self.folder = self.preprocessed / UNLABELLED / DATA
        add_unlabelled(root, images)

    def image(self, key: str, seed: int, **geometry: Any) -> Path:
        path = self.raw / "imagesUn" / f"{key}_0000.nii.gz"
        write_nifti(image_and_labels(seed)[0], path, **geometry)
        return path

    def run(self, *options: str) -> int:
        return main(["preprocess_unlabelled", "-d", "901", *options])

    @property
    def identifiers(self) -> list[str]:
        return sorted(nnUNetDatasetBlosc2.get_identifiers(str(self.folder))) if self.folder.is_dir() else []

    @property
    def plans(self) -> PlansManager:
        return PlansManager(json.loads((self.preprocessed / "nnUNetPlans.json").read_text()))

    def change_plans(self, **entries: Any) -> None:
        path = self.preprocessed / "nnUNetPlans.json"
        content = json.loads(path.read_text())
        content["configurations"]["3d_fullres"] |= entries
        path.write_text(json.dumps(content))

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.folder.iterdir()}

    def state(self) -> dict[str, str]:
        files = (path for path in sorted(self.preprocessed.rglob("*")) if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def open(self, table: AnnotationTable, validation: tuple[str, ...] = ()) -> nnUNetDatasetBlosc2 | None:
        plans = self.plans
        return unlabelled_dataset(self.preprocessed, plans, plans.get_configuration("3d_fullres"), table, validation)

    @property
    def table(self) -> AnnotationTable:
        return AnnotationTable.from_dataset_json(json.loads((self.raw / "dataset.json").read_text()))
