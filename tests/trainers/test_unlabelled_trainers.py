"""What all trainers with unlabelled images promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import (
    assert_same_optimizer,
    curves,
    largest_difference,
    lines_of,
    stopped_and_resumed,
    trainer_for,
    weights,
)
from two_streams import two_stream_dataset

from nnunet_mutual.trainers import MeanTeacherTrainer, MutualCorrelationTrainer, MutualPrototypeTrainer

OFF = {
    MeanTeacherTrainer: {"consistency": 0.0},
    MutualCorrelationTrainer: {"loss": {"consistency": 0, "correlation": 0}},
    MutualPrototypeTrainer: {"loss": {"prototypes": 0, "pseudo": 0, "contrast": 0}},
}


@pytest.mark.parametrize("trainer_class", list(OFF))
def test_without_weights_and_unlabelled_samples_it_is_stock(nnunet_folders: Path, trainer_class: Any) -> None:
    """Fed batches of stock's loader, V or the student does the steps of stock nnU-Net."""
    preprocessed = two_stream_dataset(nnunet_folders, settings=OFF[trainer_class])
    ours, stock = trainer_for(preprocessed, trainer_class), trainer_for(preprocessed, nnUNetTrainer)
    ours.initialize()
    stock.initialize()
    stock.network.load_state_dict(ours.network.state_dict())
    before = weights(ours)
    loader, _ = stock.get_dataloaders()
    ours.training_batch = ours.validation_batch
    ours.peers.set_epoch(0)
    stock.network.train()
    for _ in range(20):
        batch = next(loader)
        stock.train_step(batch)
        ours.train_step(batch)
    assert largest_difference(weights(ours), weights(stock)) <= 1e-6
    assert largest_difference(weights(ours), before) > 1e-3


@pytest.mark.parametrize("trainer_class", list(OFF))
def test_it_goes_on_to_the_bit(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, trainer_class: Any) -> None:
    settings = {"num_iterations_per_epoch": 4, "unlabelled_per_batch": 2, "ramp": 0.5}
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings)
    whole = trainer_for(preprocessed, trainer_class)
    whole.run_training()
    for number, stop in enumerate((2, 7)):  # within the first and the second epoch
        monkeypatch.setenv("nnUNet_results", str(nnunet_folders / f"other_{number}"))
        assert_same(stopped_and_resumed(preprocessed, trainer_class, stop), whole)


def assert_same(a: Any, b: Any, compare: Callable[[Any, Any], None] = assert_same_optimizer) -> None:
    for mine, reference in zip(a.peers.networks, b.peers.networks, strict=True):
        assert largest_difference(mine.state_dict(), reference.state_dict()) == 0
    for mine, reference in zip(a.peers.averages, b.peers.averages, strict=True):
        assert largest_difference(mine.network.state_dict(), reference.network.state_dict()) == 0
    for mine, reference in zip(a.peers.optimizers, b.peers.optimizers, strict=True):
        compare(mine, reference)
    for mine, reference in zip(a.objectives, b.objectives, strict=True):
        states = (to_lists(objective.state_dict()) for objective in (mine, reference))
        assert next(states) == next(states)
    assert curves(a) == curves(b) and lines_of(a) == lines_of(b)


def to_lists(state: Any) -> Any:
    """Tensors as lists, which can be compared."""
    if isinstance(state, dict):
        return {name: to_lists(value) for name, value in state.items()}
    return state.tolist() if torch.is_tensor(state) else state
