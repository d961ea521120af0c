"""Stock nnU-Net with the benchmark's schedule; nothing else is changed."""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_mutual.engine.scheduled_stock import ScheduledStock


class MixedStock(nnUNetTrainer):
    """Stock nnU-Net that may train in bfloat16 on a CPU, where it knows float32 only."""

    @property
    def mixed(self) -> bool:
        """Whether it does."""
        return True

    def train_step(self, batch: dict) -> dict:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return super().validation_step(batch)


class StockSchedule(MixedStock, ScheduledStock):
    """Reads the same "mutual" block of the plans as nnunet_mutual's trainers, so the numbers stand in one place."""

    @property
    def mixed(self) -> bool:
        """As the plans ask for."""
        return self.schedule.amp == "bfloat16"
