"""Trainers on the tiny dataset, in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_mutual.trainers import PartialTrainer

KEYS = [f"case_{i:02d}" for i in range(6)]
SHORT = {"num_epochs": 3, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "amp": "off", "seed": 1}


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
    resume: bool = False,
) -> Any:
    """Makes a trainer as nnUNetv2_train does; ``resume`` is --c."""
    plans, dataset = (json.loads((preprocessed / n).read_text()) for n in ("nnUNetPlans.json", "dataset.json"))
    plans["continue_training"] = resume
    trainer = trainer_class(plans, configuration, fold, dataset, torch.device("cpu"))
    trainer.logger.plot_progress_png = lambda folder: None  # seconds each, and not what these tests are about
    if resume:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
