"""Trainers on the tiny dataset, in process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_mutual.trainers import PartialTrainer

KEYS = [f"case_{i:02d}" for i in range(6)]
SHORT = {"num_epochs": 3, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "amp": "off", "seed": 1}
GROUPS = {"stage1_networks": "groups", "stage2_networks": "groups"}  # of MutualPartialTrainer


def partial_block(**more: Any) -> dict[str, Any]:
    """Sources alternate, so that every fold has both."""
    block = tiny.two_sources(["liver"], ["tumour", "spleen"], KEYS, **more)
    block["cases"] = {key: {"source": "ab"[i % 2]} for i, key in enumerate(KEYS)}
    return block


def region_block() -> dict[str, Any]:
    block = tiny.two_sources(["whole"], ["whole", "core", "enhancing"], KEYS)
    block["cases"] = {key: {"source": "ab"[i % 2]} for i, key in enumerate(KEYS)}
    return block


def trainer_for(
    preprocessed: Path,
    trainer_class: type[nnUNetTrainer] = PartialTrainer,
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    *,
    resume: str | None = None,
) -> Any:
    """Makes a trainer as nnUNetv2_train does; ``resume`` ("latest", "best") is --c from that checkpoint."""
    plans, dataset = (json.loads((preprocessed / n).read_text()) for n in ("nnUNetPlans.json", "dataset.json"))
    plans["continue_training"] = resume is not None
    trainer = trainer_class(plans, configuration, fold, dataset, torch.device("cpu"))
    trainer.logger.plot_progress_png = lambda folder: None  # seconds each, and not what these tests are about
    if resume is not None:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / f"checkpoint_{resume}.pth"))
    return trainer


def started(preprocessed: Path, trainer_class: type[nnUNetTrainer], steps: int = 0) -> tuple[Any, Any]:
    """A trainer after some steps, and its training loader."""
    trainer = trainer_for(preprocessed, trainer_class)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    trainer.peers.set_epoch(0)
    for _ in range(steps):
        trainer.train_step(next(loader))
    return trainer, loader


def change_settings(preprocessed: Path, **settings: Any) -> None:
    """Replaces the settings in the plans."""
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["mutual"] = settings
    file.write_text(json.dumps(plans))


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


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


def assert_same_optimizer(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    mine, reference = a.state_dict(), b.state_dict()
    assert mine["param_groups"] == reference["param_groups"]
    assert mine["state"].keys() == reference["state"].keys() != set()
    for index, state in mine["state"].items():
        assert state.keys() == reference["state"][index].keys() != set()
        assert all(torch.equal(value, reference["state"][index][name]) for name, value in state.items())


def curves(trainer: Any) -> dict[str, Any]:
    logged = trainer.logger.get_checkpoint()
    return {name: json.dumps(values) for name, values in logged.items() if "timestamps" not in name}


def lines_of(trainer: Any, kind: str = "terms") -> list[dict]:
    """What the training logged of its terms (or "validation"), an entry per epoch."""
    lines = (Path(trainer.output_folder) / "mutual_log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if kind in line]


def stopped_and_resumed(preprocessed: Path, trainer_class: type[nnUNetTrainer], step: int) -> Any:
    """A training that SIGTERM stopped at a step and that --c brought to its end."""
    stopped = trainer_for(preprocessed, trainer_class)
    stop_at(stopped, step, signal.SIGTERM)
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = trainer_for(preprocessed, trainer_class, resume="latest")
    resumed.run_training()
    return resumed
