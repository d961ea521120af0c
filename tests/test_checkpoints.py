"""The checkpoint contract: readable by any nnU-Net, complete for --c, never half-written."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from training import SHORT, largest_difference, partial_block, trainer_for, weights

from nnunet_mutual.errors import MutualError
from nnunet_mutual.objectives import Objective, Term
from nnunet_mutual.peers import Peers
from nnunet_mutual.trainers import PartialTrainer
from nnunet_mutual.trainers.base import MutualTrainer

BUILTINS = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)


class TwoPeersTrainer(MutualTrainer):
    """Two networks; the second one is deployed."""

    def build_peers(self) -> Peers:
        first, self.network = (
            self.network,
            self.build_network_architecture(
                self.plans_manager,
                self.configuration_manager,
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            ),
        )
        optimizer, schedule = self.configure_optimizers()
        second, self.network = self.network, first
        return Peers([first, second], [self.optimizer, optimizer], [self.lr_scheduler, schedule], self.grad_scaler)

    @property
    def deployed_network(self) -> nn.Module:
        return self.peers.networks[1]


@pytest.fixture()
def preprocessed(nnunet_folders: Path) -> Path:
    return tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)


def types_in(value: Any) -> set[type]:
    if isinstance(value, dict):
        return {type(value)}.union(*map(types_in, value), *map(types_in, value.values()))
    if isinstance(value, (list, tuple)):
        return {type(value)}.union(*map(types_in, value))
    return {type(value)}


def stop_at(trainer: Any, step: int, number: int) -> None:
    """Lets the process get a signal within a training step."""
    original, count = trainer.train_step, 0

    def train_step(batch: dict) -> dict:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), number)
        return original(batch)

    trainer.train_step = train_step


def curves(trainer: Any) -> dict[str, Any]:
    logged = trainer.logger.get_checkpoint()
    return {name: json.dumps(values) for name, values in logged.items() if "timestamps" not in name}


def test_stock_nnunet_can_read_every_checkpoint(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    trainer.run_training()
    files = sorted(Path(trainer.output_folder).glob("checkpoint_*.pth"))
    assert [file.name for file in files] == ["checkpoint_best.pth", "checkpoint_final.pth"]
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        assert {t for t in types_in(checkpoint) if not issubclass(t, BUILTINS)} == set()
        assert checkpoint["trainer_name"] == "nnUNetTrainer"
        assert checkpoint["mutual_state"]["trainer"] == "PartialTrainer"
        assert checkpoint["init_args"]["configuration"] == "3d_fullres"
        network = nnUNetTrainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 4, enable_deep_supervision=False
        )
        network.load_state_dict(checkpoint["network_weights"], strict=True)


def test_the_deployed_network_need_not_be_the_first(preprocessed: Path) -> None:
    whole = trainer_for(preprocessed, TwoPeersTrainer)
    whole.run_training()
    final = torch.load(Path(whole.output_folder) / "checkpoint_final.pth", weights_only=True)
    second = whole.peers.networks[1].state_dict()
    assert largest_difference(final["network_weights"], second) == 0
    assert largest_difference(final["network_weights"], weights(whole)) > 1e-3

    stopped = trainer_for(preprocessed, TwoPeersTrainer)
    stop_at(stopped, 5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = trainer_for(preprocessed, TwoPeersTrainer, resume=True)
    resumed.run_training()
    for mine, reference in zip(resumed.peers.networks, whole.peers.networks, strict=True):
        assert largest_difference(mine.state_dict(), reference.state_dict()) == 0


@pytest.mark.parametrize("step", [1, 3, 5, 9], ids=["first step", "end of epoch", "within an epoch", "last step"])
def test_a_run_stopped_by_the_cluster_resumes_bit_for_bit(preprocessed: Path, step: int) -> None:
    whole = trainer_for(preprocessed)
    whole.run_training()
    terms = (Path(whole.output_folder) / "mutual_log.jsonl").read_text()
    (Path(whole.output_folder) / "mutual_log.jsonl").unlink()

    stopped = trainer_for(preprocessed)
    stop_at(stopped, step, signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        stopped.run_training()
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "handlers are put back"
    resumed = trainer_for(preprocessed, resume=True)
    assert (resumed.current_epoch, resumed.iteration) == divmod(step, 3) if step % 3 else True
    resumed.run_training()

    assert largest_difference(weights(resumed), weights(whole)) == 0
    assert curves(resumed) == curves(whole)
    assert resumed._best_ema == whole._best_ema
    states = [t.optimizer.state_dict()["state"] for t in (resumed, whole)]
    assert all(torch.equal(states[0][i]["momentum_buffer"], states[1][i]["momentum_buffer"]) for i in states[0])
    assert (Path(resumed.output_folder) / "mutual_log.jsonl").read_text() == terms


def test_a_killed_run_resumes_from_the_last_epoch_bit_for_bit(nnunet_folders: Path) -> None:
    settings = {**SHORT, "checkpoint_epochs": 2}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    whole = trainer_for(preprocessed)
    whole.run_training()

    killed = trainer_for(preprocessed)
    original = killed.train_step

    def train_step(batch: dict) -> dict:
        if killed.current_epoch == 2:
            raise RuntimeError("power cut")
        return original(batch)

    killed.train_step = train_step
    with pytest.raises(RuntimeError, match="power cut"):
        killed.run_training()
    resumed = trainer_for(preprocessed, resume=True)
    assert resumed.current_epoch == 2
    resumed.run_training()
    assert largest_difference(weights(resumed), weights(whole)) == 0
    assert curves(resumed) == curves(whole)


def test_sigusr1_saves_and_goes_on(preprocessed: Path) -> None:
    trainer = trainer_for(preprocessed)
    saved = []
    original = trainer.save_checkpoint
    trainer.save_checkpoint = lambda name: (saved.append((Path(name).name, trainer.iteration)), original(name))
    stop_at(trainer, 2, signal.SIGUSR1)
    trainer.run_training()
    assert saved[0] == ("checkpoint_latest.pth", 2)
    assert saved[-1][0] == "checkpoint_final.pth"


def test_latest_is_written_by_minutes_too(nnunet_folders: Path) -> None:
    settings = {**SHORT, "checkpoint_minutes": 0.0}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    trainer = trainer_for(preprocessed)
    saved = []
    original = trainer.save_checkpoint
    trainer.save_checkpoint = lambda name: (saved.append(Path(name).name), original(name))
    trainer.run_training()
    assert saved.count("checkpoint_latest.pth") == 2


def test_a_full_disk_leaves_the_previous_checkpoint(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(preprocessed)
    trainer.initialize()
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()

    def full(checkpoint: object, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MutualError, match="No space left on device.*continue with --c"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before
    assert [f.name for f in file.parent.glob("checkpoint*")] == ["checkpoint_latest.pth"]


class OtherTrainer(PartialTrainer):
    """Writes to the same folder when the test says so."""


@pytest.mark.parametrize("what", ["settings", "trainer", "stock", "damaged"])
def test_checkpoints_that_must_not_be_continued(preprocessed: Path, what: str) -> None:
    trainer = trainer_for(preprocessed, OtherTrainer if what == "trainer" else PartialTrainer)
    trainer.initialize()
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    if what == "settings":
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
        plans["configurations"]["3d_fullres"]["mutual"]["initial_lr"] = 0.5
        (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    elif what == "stock":
        torch.save({"network_weights": {}}, file)
    elif what == "damaged":
        file.write_bytes(file.read_bytes()[:1000])
    sentences = {
        "settings": "initial_lr: 0.01 -> 0.5.*nnunet_mutual plan --name",
        "trainer": "was written by OtherTrainer, not PartialTrainer; continue with -tr OtherTrainer",
        "stock": "was not written by a trainer of this package",
        "damaged": "is damaged or was not written by a trainer of this package",
    }
    other = trainer_for(preprocessed)
    with pytest.raises(MutualError, match=sentences[what]):
        other.load_checkpoint(str(file))


class Remembering(Objective):
    """Counts its steps."""

    term_names = ("steps",)

    def __init__(self) -> None:
        self.steps = 0

    def terms(self, outputs: Sequence, batch: object, progress: object) -> dict[str, Term]:
        self.steps += 1
        return {"steps": Term(outputs[0][0].mean() * 0 + self.steps, 0.0)}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class RememberingTrainer(MutualTrainer):
    """Has an objective with a state."""

    def build_objectives(self) -> list[Objective]:
        return [*super().build_objectives(), Remembering()]


def test_the_state_of_objectives_is_resumed(preprocessed: Path) -> None:
    stopped = trainer_for(preprocessed, RememberingTrainer)
    stop_at(stopped, 4, signal.SIGTERM)
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = trainer_for(preprocessed, RememberingTrainer, resume=True)
    resumed.run_training()
    assert resumed.objectives[1].steps == 9
    lines = [json.loads(x) for x in (Path(resumed.output_folder) / "mutual_log.jsonl").read_text().splitlines()]
    assert [line["terms"]["steps"] for line in lines] == [2.0, 5.0, 8.0]
