"""nnU-Net's planners of residual encoder U-Nets, for several networks, teachers and streams.

What differs from :class:`~nnunet_mutual.planners.MutualPlanner` is nnU-Net's: the classes are alike because its own
classes carry the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from nnunet_mutual.planning.budget import Budget
from nnunet_mutual.planning.method import method_of

TRIED_BATCH = {2: 12, 3: 2}  # unlike the default planner, nnU-Net shrinks 2d patches until 12 of them fit


class MutualPlannerResEncM(nnUNetPlannerResEncM):
    """nnUNetPlannerResEncM, so that a trainer of this package fits the GPU.

    Arguments and hooks: see :class:`~nnunet_mutual.planners.MutualPlanner`.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        *,
        plans_name: str = "nnUNetMutualResEncUNetMPlans",
        trainer: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **stock: Any,
    ):
        super().__init__(dataset_name_or_id, gpu_memory_target_in_gb, plans_name=plans_name, **stock)
        self.budget = Budget(self, method_of(self, trainer, settings), TRIED_BATCH)

    def static_estimate_VRAM_usage(self, *network: Any) -> float:
        return self.budget.estimate(*network)

    def get_plans_for_configuration(self, *arguments: Any) -> dict:
        return self.budget.plan(super().get_plans_for_configuration, *arguments)

    def generate_data_identifier(self, configuration_name: str) -> str:
        return f"{self.plans_identifier}_{configuration_name}"

    def save_plans(self, plans: dict) -> None:
        super().save_plans(self.budget.settle(plans))


class MutualPlannerResEncL(nnUNetPlannerResEncL):
    """nnUNetPlannerResEncL, so that a trainer of this package fits the GPU.

    Arguments and hooks: see :class:`~nnunet_mutual.planners.MutualPlanner`.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        *,
        plans_name: str = "nnUNetMutualResEncUNetLPlans",
        trainer: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **stock: Any,
    ):
        super().__init__(dataset_name_or_id, gpu_memory_target_in_gb, plans_name=plans_name, **stock)
        self.budget = Budget(self, method_of(self, trainer, settings), TRIED_BATCH)

    def static_estimate_VRAM_usage(self, *network: Any) -> float:
        return self.budget.estimate(*network)

    def get_plans_for_configuration(self, *arguments: Any) -> dict:
        return self.budget.plan(super().get_plans_for_configuration, *arguments)

    def generate_data_identifier(self, configuration_name: str) -> str:
        return f"{self.plans_identifier}_{configuration_name}"

    def save_plans(self, plans: dict) -> None:
        super().save_plans(self.budget.settle(plans))


class MutualPlannerResEncXL(nnUNetPlannerResEncXL):
    """nnUNetPlannerResEncXL, so that a trainer of this package fits the GPU.

    Arguments and hooks: see :class:`~nnunet_mutual.planners.MutualPlanner`.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 40,
        *,
        plans_name: str = "nnUNetMutualResEncUNetXLPlans",
        trainer: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **stock: Any,
    ):
        super().__init__(dataset_name_or_id, gpu_memory_target_in_gb, plans_name=plans_name, **stock)
        self.budget = Budget(self, method_of(self, trainer, settings), TRIED_BATCH)

    def static_estimate_VRAM_usage(self, *network: Any) -> float:
        return self.budget.estimate(*network)

    def get_plans_for_configuration(self, *arguments: Any) -> dict:
        return self.budget.plan(super().get_plans_for_configuration, *arguments)

    def generate_data_identifier(self, configuration_name: str) -> str:
        return f"{self.plans_identifier}_{configuration_name}"

    def save_plans(self, plans: dict) -> None:
        super().save_plans(self.budget.settle(plans))
