"""Stock nnU-Net with the schedule that the plans hold for our trainers, to compare them with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_mutual.disk.writing import written
from nnunet_mutual.engine.networks import seed
from nnunet_mutual.engine.stage import SKIPPED_STEPS_TOLERATED
from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import Settings, common_settings, merged_block, read_settings


class ScheduledStock(nnUNetTrainer):
    """nnU-Net's trainer: loss, loop and data are its own; length, optimiser and seed are those of the plans.

    Of the ``"mutual"`` block it reads what every trainer of this package knows. Checkpoints are whole or not there.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.schedule = read_settings(Settings, common_settings(merged_block(plans, configuration)))
        self.num_epochs = self.schedule.num_epochs
        self.num_iterations_per_epoch = self.schedule.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.schedule.num_val_iterations_per_epoch
        self.initial_lr = self.schedule.initial_lr
        self.weight_decay = self.schedule.weight_decay
        self.save_every = self.schedule.checkpoint_epochs
        self._not_finite = 0  # consecutive steps
        self._draw = self.logger.plot_progress_png
        self.logger.plot_progress_png = self._draw_at_the_end

    def _draw_at_the_end(self, folder: str) -> None:
        """Draws nnU-Net's progress.png once: it takes seconds, an epoch of a small dataset less."""
        if self.current_epoch + 1 == self.num_epochs:
            self._draw(folder)

    def initialize(self) -> None:
        """Seeds weights and batches as the trainers of this package do (nnU-Net's hook)."""
        if not self.was_initialized:
            seed(self.schedule.seed)
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Returns nnU-Net's SGD, or AdamW with nnU-Net's decay (nnU-Net's hook)."""
        if self.schedule.optimizer == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step (nnU-Net's hook, which has the loss on the host).

        Raises:
            MutualError: the loss is not finite, and no gradient scaler skips such a step.
        """
        output: dict[str, Any] = super().train_step(batch)
        self._not_finite = 0 if math.isfinite(output["loss"]) else self._not_finite + 1
        if self._not_finite > (0 if self.grad_scaler is None else SKIPPED_STEPS_TOLERATED):
            raise MutualError(
                f"the loss of nnU-Net's own trainer became {float(output['loss'])} in epoch {self.current_epoch}, so "
                f"nothing can be learnt; {self._why()}"
            )
        return output

    def _why(self) -> str:
        if len(self._get_deep_supervision_scales() or ()) == 1:
            return (
                "it divides 0 by 0 in the deep supervision of a network with two stages: plan three, or leave this "
                "trainer out"
            )
        return "lower initial_lr, or look at the images"

    def save_checkpoint(self, filename: str) -> None:
        """Writes the whole file or none (nnU-Net's hook)."""
        with written(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))
