"""What the loop does before the terms of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_mutual.objectives import Batch, Objective, Output, Progress, ask_all


def prepare_all(
    objectives: Sequence[Objective], outputs: Sequence[Output], batch: Batch, progress: Progress
) -> list[Any]:
    """The steps of objectives, of which all teachers were asked."""
    said = ask_all(objectives, batch, progress)
    return [objective.prepare(outputs, batch, progress, said) for objective in objectives]


def prepare(objective: Objective, outputs: Sequence[Output], batch: Batch, progress: Progress) -> Any:
    """The step of an objective that needs no other one."""
    return prepare_all([objective], outputs, batch, progress)[0]
