"""nnU-Net's planners of residual encoder U-Nets, for several networks, teachers and streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from nnunet_mutual.planners.mutual_planner import MutualPlanner

TRIED_BATCH = {2: 12, 3: 2}  # unlike the default planner, nnU-Net shrinks 2d patches until 12 of them fit


class MutualPlannerResEncM(MutualPlanner, nnUNetPlannerResEncM):
    """nnUNetPlannerResEncM, so that a trainer of this package fits the GPU."""

    default_plans = "nnUNetMutualResEncUNetMPlans"
    tried_batch: ClassVar[Mapping[int, int]] = TRIED_BATCH


class MutualPlannerResEncL(MutualPlanner, nnUNetPlannerResEncL):
    """nnUNetPlannerResEncL, so that a trainer of this package fits the GPU."""

    default_plans = "nnUNetMutualResEncUNetLPlans"
    tried_batch: ClassVar[Mapping[int, int]] = TRIED_BATCH


class MutualPlannerResEncXL(MutualPlanner, nnUNetPlannerResEncXL):
    """nnUNetPlannerResEncXL, so that a trainer of this package fits the GPU."""

    default_plans = "nnUNetMutualResEncUNetXLPlans"
    tried_batch: ClassVar[Mapping[int, int]] = TRIED_BATCH
