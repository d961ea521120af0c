"""From a training to a reader and back: the labels that a reader accepted are true ones in the next training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from reviewing import REVIEW, fill, raw_label, run, voxels
from training import SHORT, partial_block, trainer_for

from nnunet_mutual.trainers import MutualPartialTrainer

SETTINGS = {**SHORT, "num_epochs": 2, "num_iterations_per_epoch": 2, "pseudo_labels": {"label": False, "voxel": False}}


def test_round_trip(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_mutual.pseudo_labels.review.make.draw", lambda scene: "data:,")  # in test_review_page
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SETTINGS)
    first = trainer_for(preprocessed, MutualPartialTrainer)
    first.run_training()
    review = nnunet_folders / "review"
    assert run(*REVIEW, "-o", review) == 0
    rows = [row.split(",")[:2] for row in (review / "review.csv").read_text().splitlines()[1:]]
    masks = {(key, name): voxels(next((review / "candidates").glob(f"{key}__*_{name}.nii.gz"))) for key, name in rows}
    (case, label), mask = next((entry, mask > 0) for entry, mask in masks.items() if mask.any())
    own = first.store.candidates(case)[0] == tiny.PLAIN[label]  # same grid: the tiny dataset is not resampled
    np.testing.assert_array_equal(mask, own)

    fill(review / "review.csv", {(case, label): ("accept",)})
    drawn = raw_label(nnunet_folders, case)
    assert run("accept", 901, review / "review.csv", "--dry-run") == 0
    assert run("accept", 901, review / "review.csv") == 0
    np.testing.assert_array_equal(raw_label(nnunet_folders, case), np.where(mask, tiny.PLAIN[label], drawn))
    assert run("check", 901) == 0

    second = trainer_for(preprocessed, MutualPartialTrainer)
    second.initialize()
    known = second.knowledge
    assert known.tables.annotated[known.patterns([case])[0], known.channel[label]]
    assert run(*REVIEW, "-o", nnunet_folders / "again", "--all") == 0
    assert f"{case},{label}," not in (nnunet_folders / "again" / "review.csv").read_text()
