"""What a validation measures beside nnU-Net's summary, and that a training does not fail over it."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import tiny

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.errors import MutualError
from nnunet_mutual.evaluation import whole_cases

CONTENT = {
    "channel_names": {"0": "CT"},
    "labels": tiny.PLAIN,
    "file_ending": ".nii.gz",
    "mutual": tiny.two_sources(["liver"], ["spleen"], ["case_00"]),
}
ERRORS = (MutualError("no"), PermissionError(13, "no"), BrokenProcessPool("no"), MemoryError("no"), RuntimeError("no"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_fails_is_said_and_no_older_table_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    labels = tiny.image_and_labels(0)[1]
    for name in ("validation", "labels"):
        (tmp_path / name).mkdir()
        tiny.write_nifti(labels, tmp_path / name / "case_00.nii.gz")
    said: list[str] = []

    def measure() -> None:
        table = AnnotationTable.from_dataset_json(CONTENT)
        whole_cases.measure_validation(tmp_path / "validation", tmp_path / "labels", table, CONTENT, said.append)

    monkeypatch.setattr(whole_cases, "default_num_processes", 1)
    measure()
    table = tmp_path / "validation" / "metrics.csv"
    assert table.is_file() and str(table) in said.pop()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(whole_cases, "measure_cases", fail)
    measure()
    assert not table.exists() and len(said) == 1
    assert said[0].startswith("WARNING: surface distances and volumes were not measured: ") and said[0].endswith("no")
