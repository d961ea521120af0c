"""Which training is meant, and what is said where it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_mutual.disk.trainings import NamedTraining
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
