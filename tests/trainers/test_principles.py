"""With nothing to be mutual or partial about, a trainer of this package is stock nnU-Net."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import KEYS, SHORT, largest_difference, trainer_for, weights

from nnunet_mutual.trainers import PartialTrainer

STEPS = 20
EVERYTHING = ["liver", "tumour", "spleen"]
DECLARED = {"version": 1, "sources": {"a": {"annotated": EVERYTHING}}, "cases": {key: {"source": "a"} for key in KEYS}}
TWO_SOURCES = {
    **tiny.two_sources(EVERYTHING, EVERYTHING, KEYS),
    "sources": {"a": {"annotated": EVERYTHING}, "b": {"annotated": EVERYTHING, "contains": {"liver": ["tumour"]}}},
    "may_overlap": [["liver", "spleen"]],
}


@pytest.mark.parametrize(
    "dataset",
    [
        {},
        {"batch_dice": True},
        {"ignore": True},
        {"labels": tiny.REGIONS},
        {"labels": tiny.REGIONS, "ignore": True},
        {"block": DECLARED},
        {"block": TWO_SOURCES},
        {"configurations": ("2d",)},
    ],
    ids=["plain", "batch dice", "ignore", "regions", "regions with ignore", "declared", "two sources", "2d"],
)
def test_twenty_steps_give_the_weights_of_stock(nnunet_folders: Path, dataset: dict[str, Any]) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, settings=SHORT, **dataset)
    configuration = dataset.get("configurations", ("3d_fullres",))[0]
    ours, stock = (trainer_for(preprocessed, c, configuration) for c in (PartialTrainer, nnUNetTrainer))
    ours.initialize()
    stock.initialize()
    stock.network.load_state_dict(ours.network.state_dict())
    before = weights(ours)
    loader, _ = ours.get_dataloaders()
    for trainer in (ours, stock):
        trainer.network.train()
    for _ in range(STEPS):
        batch = next(loader)
        losses = [float(trainer.train_step(batch)["loss"]) for trainer in (stock, ours)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert largest_difference(weights(ours), weights(stock)) <= 1e-6
    assert largest_difference(weights(ours), before) > 1e-3, "the twenty steps changed nothing, so they prove nothing"


@pytest.mark.parametrize("block", [None, DECLARED], ids=["plain", "declared"])
def test_a_whole_training_is_that_of_stock(nnunet_folders: Path, block: dict[str, Any] | None) -> None:
    """Same split, same batches, same weights, same curves, from the same random state; no recorded batches."""
    preprocessed = tiny.make_dataset(nnunet_folders, settings=SHORT, block=block)
    stock = trainer_for(preprocessed, nnUNetTrainer)
    for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
        setattr(stock, name, SHORT[name])
    torch.manual_seed(SHORT["seed"])
    np.random.seed(SHORT["seed"])
    random.seed(SHORT["seed"])
    stock.run_training()
    splits = (preprocessed / "splits_final.json").read_text()
    (preprocessed / "splits_final.json").unlink()
    ours = trainer_for(preprocessed)
    ours.run_training()

    assert json.loads((preprocessed / "splits_final.json").read_text()) == json.loads(splits)
    assert largest_difference(weights(ours), weights(stock)) <= 1e-6
    curves = [trainer.logger.get_checkpoint() for trainer in (ours, stock)]
    for name in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "lrs"):
        assert len(curves[0][name]) == SHORT["num_epochs"]
        np.testing.assert_allclose(curves[0][name], curves[1][name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert ours._best_ema == pytest.approx(stock._best_ema)


def test_the_settings_default_to_those_of_stock(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, cases=1, configurations=())
    ours, stock = trainer_for(preprocessed), trainer_for(preprocessed, nnUNetTrainer)
    schedule = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr", "weight_decay")
    for name in (*schedule, "oversample_foreground_percent", "probabilistic_oversampling"):
        assert getattr(ours, name) == getattr(stock, name), name
