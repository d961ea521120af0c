"""Which training is meant, and what is said where it is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nnunet_mutual.disk.trainings import NamedTraining, begin_validation
from nnunet_mutual.errors import MutualError

DATASET = "Dataset007_Tumour"


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        (
            ("MutualCrossModalTrainer", "nnUNetPlans"),
            "; choose its plans with -p nnUNetPlansGroups or -p nnUNetPlans_2",
        ),
        (
            ("MeanTeacherTrainer", "nnUNetPlansGroups"),
            "; train it with: nnunet_mutual train 7 3d_fullres 0 -tr MeanTeac",
        ),
    ],
    ids=["other plans", "other trainer"],
)
def test_a_training_that_is_not_there(nnunet_folders: Path, asked: tuple[str, str], fix: str) -> None:
    results = nnunet_folders / "nnUNet_results" / DATASET
    for plans in ("nnUNetPlansGroups", "nnUNetPlans_2"):
        (results / f"MutualCrossModalTrainer__{plans}__3d_fullres").mkdir(parents=True)
    (results / "MutualCrossModalTrainer__nnUNetPlansOther__2d").mkdir()
    with pytest.raises(MutualError) as error:
        NamedTraining(DATASET, "3d_fullres", "0", *asked).find_model()
    assert fix in str(error.value) and "nnUNetPlansOther__2d" in str(error.value)


def test_one_process_validates_a_fold(tmp_path: Path) -> None:
    begin_validation(tmp_path, "checkpoint_final.pth", [3, 1.0])
    note = tmp_path / "checkpoint.json"
    content = json.loads(note.read_text())
    other = os.getppid()
    note.write_text(json.dumps({**content, "process": [content["process"][0], other]}))
    with pytest.raises(MutualError, match=rf"is being written by another command \(process {other} on"):
        begin_validation(tmp_path, "checkpoint_best.pth", [2, 1.0])
    assert json.loads(note.read_text())["checkpoint"] == "checkpoint_final.pth"
    for name in ("summary.json", "metrics.csv"):  # of the other command, which has ended its work
        (tmp_path / name).write_text("{}")
    begin_validation(tmp_path, "checkpoint_best.pth", [2, 1.0])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.json"], "results of an older validation"
