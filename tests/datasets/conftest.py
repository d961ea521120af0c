"""Fixtures of the tests of raw datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_dataset import RawDataset


@pytest.fixture()
def raw(nnunet_folders: Path) -> RawDataset:
    return RawDataset(nnunet_folders)
