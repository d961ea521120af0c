"""One network for cases that annotate different labels."""

from __future__ import annotations

from nnunet_mutual.trainers.base import MutualTrainer


class PartialTrainer(MutualTrainer):
    """nnU-Net with tri-state supervision: what a case does not annotate is unknown there, not background.

    Plain labels and regions, ignore label, deep supervision, batch Dice, every configuration including cascades, DDP.
    With a fully annotated dataset of one source it is stock nnU-Net.
    """

    paper = (
        "Shi et al.: Marginal loss and exclusion loss for partially supervised multi-organ segmentation. Medical Image "
        "Analysis 70, 101979 (2021)"
    )
