"""What the tests of merge share: two small datasets that label different organs, and a look at the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from raw_dataset import SHAPE, RawDataset

from nnunet_mutual.cli.parser import main

LIVER, SPLEEN, OUT = "Dataset011_Liver", "Dataset012_Spleen", "Dataset111_Abdomen"
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)


class Pair:
    """Dataset011_Liver (liver 1; two cases) and Dataset012_Spleen (kidney 1, spleen 2; three cases)."""

    def __init__(self, root: Path, *, ending: str = ".nii.gz") -> None:
        self.root = root / "nnUNet_raw"
        self.liver = RawDataset(
            root, {"c_1": ["liver"], "c_2": ["liver"]}, {"background": 0, "liver": 1}, name=LIVER, ending=ending
        )
        self.spleen = RawDataset(
            root,
            {"s_1": ["spleen"], "s_2": ["kidney", "spleen"], "s_3": ["kidney"]},
            {"background": 0, "kidney": 1, "spleen": 2},
            name=SPLEEN,
        )
        for number, key in enumerate(self.spleen.drawn, 10):
            self.spleen.image(key, voxels(number))
        self.out = self.root / OUT

    def merge(self, *options: str) -> int:
        return main(["merge", "11", "12", OUT, *options])

    def label_map(self, key: str, ending: str = ".nii.gz") -> np.ndarray:
        return read(self.out / "labelsTr" / (key + ending))

    def twin(self, liver: Mapping[int, int], spleen: Mapping[int, int], *, seed: int = 99) -> None:
        """Gives case c_1 of Liver and case s_1 of Spleen the same image, and each its own label map."""
        self.liver.image("c_1", voxels(seed))
        self.spleen.image("s_1", voxels(seed))
        self.liver.label("c_1", liver)
        self.spleen.label("s_1", spleen)

    def state(self) -> dict[str, str]:
        """Names and contents of everything in nnUNet_raw."""
        files = (path for path in sorted(self.root.rglob("*")) if not path.is_dir())
        return {str(p.relative_to(self.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def voxels(seed: int, offset: float = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32) + np.float32(offset)


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def block_of(dataset: RawDataset, sources: Mapping[str, Any], cases: Mapping[str, Any], **more: Any) -> None:
    """Writes an annotation table."""
    dataset.save(mutual={"version": 1, "sources": sources, "cases": cases} | more)


def unlabelled(dataset: RawDataset, images: Mapping[str, np.ndarray]) -> None:
    folder = dataset.folder / "imagesUn"
    folder.mkdir()
    for key, array in images.items():
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{key}_0000{dataset.ending}"))


def regions(pair: Pair, names: Sequence[str] = ("whole", "core")) -> None:
    """Makes both datasets tumour regions: whole = {1, 2}, core = {2}."""
    labels = {"background": 0, names[0]: [1, 2], names[1]: [2]}
    pair.liver.save(labels=labels, regions_class_order=[1, 2])
    pair.spleen.save(labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
