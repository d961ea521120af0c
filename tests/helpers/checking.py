"""What the tests of check share: running it, and the simplest ways to spoil a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from raw_dataset import SHAPE, RawDataset

from nnunet_mutual.datasets.check import check

VOXELS = np.random.default_rng(5).normal(size=SHAPE)


def examine(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = check(777, as_json=True)
    return status, json.loads(capsys.readouterr().out)


def sentences(report: dict[str, Any], severity: str) -> list[str]:
    return [f"{p['place']}: {p['text']}" for p in report["problems"] if p["severity"] == severity]


def nan(raw: RawDataset) -> None:
    spoilt = VOXELS.copy()
    spoilt[0, 0, :2] = np.nan, np.inf
    raw.image("toy_002", spoilt)


def broken(raw: RawDataset) -> None:
    (raw.folder / "imagesTr" / "toy_001_0000.nii.gz").write_bytes(b"not an image")


def broken_label(raw: RawDataset) -> None:
    path = raw.folder / "labelsTr" / "toy_001.nii.gz"
    path.write_bytes(path.read_bytes()[:40])


def entry(key: str, **changes: Any) -> Callable[[RawDataset], None]:
    def change(raw: RawDataset) -> None:
        raw.content["mutual"]["cases"][key].update(changes)
        raw.save()

    return change
