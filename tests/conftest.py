"""Fixtures of all tests: nnU-Net folders of their own, one thread, no worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_def_n_proc"] = "1"
os.environ.pop("nnUNet_extTrainer", None)


@pytest.fixture()
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Points nnUNet_raw, nnUNet_preprocessed and nnUNet_results below a temporary folder."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    yield tmp_path
