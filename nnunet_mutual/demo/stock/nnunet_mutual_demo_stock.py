"""Stock nnU-Net on a schedule short enough for a demo."""

from __future__ import annotations

from nnunet_mutual.engine.scheduled_stock import ScheduledStock


class nnUNetTrainerDemo(ScheduledStock):
    """nnU-Net with the schedule that the plans hold for PartialTrainer; loss, loop and data are nnU-Net's own."""
