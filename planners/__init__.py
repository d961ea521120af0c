"""nnU-Net planners of this package, imported as ``nnunet_mutual.planners``.

``__all__`` is a literal list: it is what ``-pl`` can name after ``nnunet_mutual register``.
"""

from __future__ import annotations

from nnunet_mutual.planners.mutual_planner import MutualPlanner
from nnunet_mutual.planners.residual_encoder import (
    MutualPlannerResEncL,
    MutualPlannerResEncM,
    MutualPlannerResEncXL,
)

__all__ = ["MutualPlanner", "MutualPlannerResEncL", "MutualPlannerResEncM", "MutualPlannerResEncXL"]
