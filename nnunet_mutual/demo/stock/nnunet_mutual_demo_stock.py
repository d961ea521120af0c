"""Stock nnU-Net on a schedule short enough for a demo: nnU-Net's own way, a subclass that sets attributes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerDemo(nnUNetTrainer):
    """nnU-Net with the schedule that the plans hold for PartialTrainer; loss, loop and data are nnU-Net's own."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        schedule = plans["configurations"][configuration]["mutual"]
        self.num_epochs = schedule["num_epochs"]
        self.num_iterations_per_epoch = schedule["num_iterations_per_epoch"]
        self.num_val_iterations_per_epoch = schedule["num_val_iterations_per_epoch"]
        self.initial_lr = schedule["initial_lr"]
        self.seed = schedule["seed"]

    def initialize(self) -> None:
        """Seeds weights and batches as PartialTrainer does (nnU-Net's hook)."""
        torch.manual_seed(self.seed)
        np.random.seed(self.seed)
        random.seed(self.seed)
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Returns AdamW with nnU-Net's schedule: it needs fewer updates than nnU-Net's SGD (nnU-Net's hook)."""
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
