"""nnU-Net's default planner, for several networks, teachers and streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_mutual.planning.budget import Budget
from nnunet_mutual.planning.method import method_of
from nnunet_mutual.plugin.compat import processes_of_planners


class MutualPlanner(ExperimentPlanner):
    """Plans so that a trainer of this package fits the GPU; for one network alone, nnU-Net's own plans.

    Args:
        stock: nnU-Net's arguments, by position or by name.
        plans_name: of the plans; by default :attr:`default_plans`.
        trainer: what to plan for; None chooses by what the dataset holds.
        settings: of that trainer.

    Attributes:
        default_plans: name of the plans.
        tried_batch: for how many patches nnU-Net's search lets the patch shrink, by dimensions.
    """

    default_plans = "nnUNetMutualPlans"
    tried_batch: ClassVar[Mapping[int, int]] = {2: 2, 3: 2}

    def __init__(
        self,
        *stock: Any,
        plans_name: str | None = None,
        trainer: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **named: Any,
    ):
        super().__init__(*stock, plans_name=plans_name or self.default_plans, **named)
        self.budget = Budget(self, method_of(self, trainer, settings), self.tried_batch)

    def plan_experiment(self) -> dict:
        """Returns the plans (nnU-Net's hook)."""
        with processes_of_planners():
            return super().plan_experiment()

    def static_estimate_VRAM_usage(self, *network: Any) -> float:
        """Returns nnU-Net's number for a patch, with what the method adds (nnU-Net's hook)."""
        return self.budget.estimate(*network)

    def get_plans_for_configuration(self, *arguments: Any) -> dict:
        """Returns the plan of a configuration (nnU-Net's hook)."""
        return self.budget.plan(super().get_plans_for_configuration, *arguments)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Returns a name of its own for the preprocessed data, so that those of other plans stay (nnU-Net's hook)."""
        return f"{self.plans_identifier}_{configuration_name}"

    def save_plans(self, plans: dict) -> None:
        """Tells the trainer what was planned for, and the user what it costs (nnU-Net's hook)."""
        super().save_plans(self.budget.settle(plans))
