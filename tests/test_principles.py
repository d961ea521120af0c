"""With nothing to be mutual or partial about, a trainer of this package is stock nnU-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import KEYS, SHORT, largest_difference, trainer_for, weights

STEPS = 20
FULL = {"version": 1, "sources": {"a": {"annotated": ["liver", "tumour", "spleen"]}}}


@pytest.mark.parametrize(
    "dataset",
    [
        {},
        {"batch_dice": True},
        {"ignore": True},
        {"labels": tiny.REGIONS},
        {"labels": tiny.REGIONS, "ignore": True},
        {"block": {**FULL, "cases": {key: {"source": "a"} for key in KEYS}}},
    ],
    ids=["plain", "batch dice", "ignore", "regions", "regions with ignore", "declared"],
)
def test_twenty_steps_give_the_weights_of_stock(nnunet_folders: Path, dataset: dict[str, Any]) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, settings=SHORT, **dataset)
    ours, stock = trainer_for(preprocessed), trainer_for(preprocessed, nnUNetTrainer)
    ours.initialize()
    stock.initialize()
    stock.network.load_state_dict(ours.network.state_dict())
    before = weights(ours)
    loader, validation = ours.get_dataloaders()
    for trainer in (ours, stock):
        trainer.network.train()
    for _ in range(STEPS):
        batch = next(loader)
        losses = [float(trainer.train_step(batch)["loss"]) for trainer in (stock, ours)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert largest_difference(weights(ours), weights(stock)) <= 1e-6
    assert largest_difference(weights(ours), before) > 1e-3, "the twenty steps changed nothing, so they prove nothing"


def test_the_same_seed_draws_the_same_batches_as_stock(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, settings=SHORT)
    batches = []
    for trainer_class in (None, nnUNetTrainer):
        trainer = trainer_for(preprocessed, *([trainer_class] if trainer_class else []))
        trainer.initialize()
        np.random.seed(3)
        torch.manual_seed(3)
        loader, _ = trainer.get_dataloaders()
        batches.append(next(loader))
    assert list(batches[0]["keys"]) == list(batches[1]["keys"])
    assert torch.equal(batches[0]["data"], batches[1]["data"])
    assert all(torch.equal(a, b) for a, b in zip(batches[0]["target"], batches[1]["target"], strict=True))
