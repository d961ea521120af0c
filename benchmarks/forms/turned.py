"""Every patch turned and scaled by nnU-Net's own augmentation, in place of one of five: a control of poses."""

from __future__ import annotations

from typing import Any

from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from nnunet_mutual.batches.poses import ANGLE
from nnunet_mutual.trainers import MeanTeacherTrainer


def always_turned(transforms: Any) -> Any:
    """Has nnU-Net's training transforms turn (as far as poses do) and scale every patch."""
    spatial = next(each for each in transforms.transforms if isinstance(each, SpatialTransform))
    spatial.p_rotation = spatial.p_scaling = 1
    spatial.rotation = (-ANGLE, ANGLE)  # of slices nnU-Net's own is from -180 to 180 degrees
    return transforms


class TurnedTrainer(MeanTeacherTrainer):
    """The mean teacher; student and teacher see each patch in the same pose."""

    def get_training_transforms(self, *arguments: Any, **options: Any) -> Any:
        """See nnU-Net."""
        return always_turned(super().get_training_transforms(*arguments, **options))
