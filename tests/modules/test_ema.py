"""Moving averages of weights: the arithmetic, what is copied, and what is deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from training import GROUPS, SHORT, largest_difference, partial_block, trainer_for

from nnunet_mutual.errors import MutualError
from nnunet_mutual.modules.ema import TURN, MovingAverage, decay_of, whose_turn
from nnunet_mutual.trainers import MutualPartialTrainer


def test_the_average() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(network, 0.5)
    expected = network[0].weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            network[0].weight.add_(1.0)
        network(torch.randn(4, 2))  # moves the running mean and counts a batch
        average.update(network)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
    torch.testing.assert_close(average.network[0].weight, expected)
    assert average.network[1].num_batches_tracked == network[1].num_batches_tracked == 12
    assert not torch.equal(average.network[1].running_mean, network[1].running_mean)
    assert not average.network.training and not any(p.requires_grad for p in average.network.parameters())
    other = MovingAverage(network, 0.9)
    other.load_state_dict(average.state_dict())
    assert other.decay == 0.5, "a training goes on with the decay it began with"
    before_it_was_saved = {key: value for key, value in average.state_dict().items() if key != "decay"}
    old = MovingAverage(network, 0.99)
    old.load_state_dict(before_it_was_saved)
    assert old.decay == 0.99
    assert other.steps == 12 and torch.equal(other.network[0].weight, average.network[0].weight)
    average.restart(network)
    assert average.steps == 0 and torch.equal(average.network[0].weight, network[0].weight)


def test_the_decay_by_the_length_of_a_training() -> None:
    decay = decay_of(0.1, 480)
    ages = torch.arange(5000, dtype=torch.float64)
    weights = (1 - decay) * decay**ages
    assert (weights * ages).sum().item() == pytest.approx(48, rel=1e-3), "the mean age is not a tenth of the updates"
    assert decay_of(0.1, 250_000) > decay_of(0.02, 250_000) > 0.9997


def test_two_averages_take_turns_of_random_length() -> None:
    turns = [whose_turn(step) for step in range(4000)]
    assert turns == [whose_turn(step) for step in range(4000)]
    assert sum(turns) / len(turns) == pytest.approx(0.5, abs=0.05)
    changes = [step for step in range(1, 4000) if turns[step] != turns[step - 1]]
    lengths = [b - a for a, b in zip(changes, changes[1:], strict=False)]
    assert sum(lengths) / len(lengths) == pytest.approx(TURN, rel=0.1) and len({*lengths}) > 5


def test_averages_are_validated_deployed_and_resumed(nnunet_folders: Path) -> None:
    settings = {**SHORT, **GROUPS, "num_epochs": 5, "num_iterations_per_epoch": 2, "ema": 0.9}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    trainer = trainer_for(preprocessed, MutualPartialTrainer)
    seen: list[nn.Module] = []
    original = trainer.validation_step

    def validation_step(batch: dict) -> dict:
        handles = [m.register_forward_hook(lambda m, *_: seen.append(m)) for m in trainer.peers.evaluated]
        result = original(batch)
        for handle in handles:
            handle.remove()
        return result

    trainer.validation_step = validation_step
    trainer.run_training()
    assert len(seen) == 2 * trainer.num_epochs, "each average once per validation batch"
    final = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    state = final["mutual_state"]
    average = state["peers"]["averages"][state["deployed"]]["weights"]
    assert largest_difference(final["network_weights"], average) == 0
    assert largest_difference(average, state["peers"]["networks"][state["deployed"]]) > 0
    assert state["peers"]["averages"][0]["steps"] == 2 * 2, "begun anew with stage 2"
    resumed = trainer_for(preprocessed, MutualPartialTrainer)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for mine, theirs in zip(resumed.peers.averages, trainer.peers.averages, strict=True):
        assert largest_difference(mine.network.state_dict(), theirs.network.state_dict()) == 0


def test_a_decay_of_one_never_learns(nnunet_folders: Path) -> None:
    options = {"configurations": (), "cases": 1, "settings": {**SHORT, "ema": 1.0}}
    preprocessed = tiny.make_dataset(nnunet_folders, **options)
    with pytest.raises(MutualError, match='setting "ema" must be from 0 to below 1, found 1.0'):
        trainer_for(preprocessed, MutualPartialTrainer)
