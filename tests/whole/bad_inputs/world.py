"""The world that rows break: raw datasets, one that is planned and trained, a review, predictions, soft labels."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from raw_dataset import LABELS, RawDataset
from reviewing import REVIEW, decided, fabricate, fill, run
from training import SHORT, trainer_for
from unlabelled_images import add_unlabelled

from bad_inputs.rows import FOLD, PRE, RAW, SPLITS, TRAINED
from nnunet_mutual.trainers import PartialTrainer


def make_world(root: Path) -> None:
    """Writes everything below an empty folder that the nnU-Net variables point to."""
    toy = RawDataset(root)
    toy.declare()
    rows = [f"{key},{';'.join(names)}\n" for key, names in toy.drawn.items()]
    (root / "cases.csv").write_text("case,labels\n" + "".join(rows))
    keys = {f"other_{n}": ["lung"] for n in range(3)}
    other = RawDataset(root, keys, {"background": 0, "lung": 1}, name="Dataset778_Other")
    other.declare()
    _two_channels(root)
    decisions = [decided("case_00", "spleen", False), decided("case_01", "liver", False)]
    fabricate(root, decisions, settings={**SHORT, "num_epochs": 1})
    add_unlabelled(root, 2)
    assert run("preprocess_unlabelled", "-d", 901, "-np", 1) == 0
    _train(root)
    assert run(*REVIEW, "-o", root / "review", "--all") == 0
    fill(root / "review" / "review.csv", {(d.case, d.label): ("accept",) for d in decisions})
    shutil.copytree(root / FOLD / "validation_full", root / "predictions")
    for file in (root / "predictions").glob("*"):
        if not file.name.endswith(".nii.gz"):
            file.unlink()
    assert run("export", 901, "3d_fullres", "-tr", "PartialTrainer", "-f", 0) == 0
    _soft_labels(root)


def _two_channels(root: Path) -> None:
    """T1 and FLAIR, with groups declared."""
    drawn = {f"two_{n}": list(LABELS)[1:] for n in range(4)}
    two = RawDataset(root, drawn, name="Dataset780_Two")
    for number, key in enumerate(drawn):
        two.image(key, np.random.default_rng(number).normal(size=(4, 5, 6)), channel=1)
    two.save(channel_names={"0": "T1", "1": "FLAIR"})
    two.declare(modality_groups={"T1": ["T1"], "all": ["T1", "FLAIR"]})


def _train(root: Path) -> None:
    trainer = trainer_for(root / PRE, PartialTrainer)
    trainer.run_training()
    fork = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:  # spawned processes would import nnU-Net again
        patch.setattr(multiprocessing, "get_context", lambda method=None: fork)
        trainer.perform_actual_validation()
    assert (root / SPLITS).is_file() and (root / FOLD / "validation" / "summary.json").is_file()
    (root / FOLD / "progress.png").write_bytes(b"a plot")
    assert (root / TRAINED / "plans.json").is_file()


def _soft_labels(root: Path) -> None:
    """As pseudo_label --soft writes them, but even."""
    folder = root / "soft"
    folder.mkdir()
    for number in range(2):
        shape = tiny.image_and_labels(20 + number)[0].shape
        np.savez_compressed(folder / f"un_{number}.npz", probabilities=np.full((4, *shape), 64, np.uint8))
    content = json.loads((root / RAW / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if k != "mutual"}))
