"""Stock nnU-Net with the benchmark's schedule; nothing else is changed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class MixedStock(nnUNetTrainer):
    """Stock nnU-Net that may train in bfloat16 on a CPU, where it knows float32 only."""

    mixed = True

    def train_step(self, batch: dict) -> dict:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return super().validation_step(batch)


class StockSchedule(MixedStock):
    """Reads the same "mutual" block of the plans as nnunet_mutual's trainers, so the numbers stand in one place."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        block = self.configuration_manager.configuration["mutual"]
        self.num_epochs = block["num_epochs"]
        self.num_iterations_per_epoch = block["num_iterations_per_epoch"]
        self.num_val_iterations_per_epoch = block["num_val_iterations_per_epoch"]
        self.initial_lr = block["initial_lr"]
        self.weight_decay = block["weight_decay"]
        self.seed = block["seed"]
        self.mixed = block["amp"] == "bfloat16"

    def initialize(self) -> None:
        """Seeds the weights, and with nnUNet_n_proc_DA=0 all that is drawn later: cases, patches, augmentation."""
        random.seed(self.seed)
        np.random.seed(self.seed)
        torch.manual_seed(self.seed)
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
