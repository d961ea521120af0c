"""Raw nnU-Net datasets of a few voxels, to be spoilt in one way each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

NAME = "Dataset777_Toy"
LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
DRAWN = {
    "toy_001": ["liver"],
    "toy_002": ["liver"],
    "toy_003": ["spleen", "kidney"],
    "toy_004": ["spleen", "kidney"],
    "toy_010": ["liver", "spleen", "kidney"],
}
SHAPE = (4, 5, 6)  # Z, Y, X


class RawDataset:
    """Writes images and label maps; label i fills 10 * i voxels of the case."""

    def __init__(
        self,
        root: Path,
        drawn: Mapping[str, Sequence[str]] = DRAWN,
        labels: Mapping[str, Any] = LABELS,
        *,
        ending: str = ".nii.gz",
        name: str = NAME,
    ) -> None:
        self.ending = ending
        self.folder = root / "nnUNet_raw" / name
        self.drawn = drawn
        for name in ("imagesTr", "labelsTr"):
            (self.folder / name).mkdir(parents=True)
        self.content: dict[str, Any] = {
            "channel_names": {"0": "CT"},
            "labels": dict(labels),
            "numTraining": len(drawn),
            "file_ending": ending,
            "note": "kept",
        }
        self.save()
        if ending == ".png":
            return  # the test writes its own
        for number, (key, names) in enumerate(drawn.items()):
            self.image(key, np.random.default_rng(number).normal(size=SHAPE))
            self.label(key, {value: 10 * value for name in names for value in np.atleast_1d(labels[name])})

    @property
    def json(self) -> Path:
        return self.folder / "dataset.json"

    @property
    def block(self) -> dict[str, Any]:
        return json.loads(self.json.read_text())["mutual"]

    def save(self, **changes: Any) -> None:
        self.content.update(changes)
        self.json.write_text(json.dumps(self.content))

    def declare(self, drawn: Mapping[str, Sequence[str]] | None = None, **more: Any) -> None:
        """Writes a block with one source, in which every case says what it annotates."""
        cases = {key: {"source": "a", "annotated": list(names)} for key, names in (drawn or self.drawn).items()}
        self.save(mutual={"version": 1, "sources": {"a": {"annotated": []}}, "cases": cases} | more)

    def image(self, key: str, voxels: np.ndarray, *, channel: int = 0, **geometry: Any) -> Path:
        return _write(
            voxels.astype(np.float32), self.folder / "imagesTr" / f"{key}_{channel:04d}{self.ending}", **geometry
        )

    def label(
        self, key: str, counts: Mapping[int, int], *, dtype: Any = np.uint8, shape: Any = SHAPE, **geometry: Any
    ) -> Path:
        voxels = np.zeros(shape, dtype)
        start = 0
        for value, number in counts.items():
            voxels.flat[start : start + number] = value
            start += number
        return _write(voxels, self.folder / "labelsTr" / f"{key}{self.ending}", **geometry)

    def preprocessed(self, root: Path) -> Path:
        """Makes the folder in nnUNet_preprocessed with a copy of dataset.json, as planning does."""
        folder = root / "nnUNet_preprocessed" / self.folder.name
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(self.json.read_text())
        return folder

    def files(self) -> list[str]:
        """Names of everything in the folder of the dataset, to see what a failed command has left behind."""
        return sorted(path.name for path in self.folder.iterdir())


def _write(
    voxels: np.ndarray, path: Path, *, spacing: Any = (1, 1, 1), origin: Any = (0, 0, 0), direction: Any = None
) -> Path:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in origin])
    if direction is not None:
        image.SetDirection([float(d) for d in direction])
    sitk.WriteImage(image, str(path))
    return path
