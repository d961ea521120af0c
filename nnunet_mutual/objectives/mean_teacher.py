"""A student learns from a moving average of itself what unlabelled images show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import pasted_targets, ramp
from nnunet_mutual.objectives.supervised import SupervisedObjective

CONFIDENT = 0.95


@dataclass(frozen=True)
class MeanTeacherStep(Step):
    """One step.

    Attributes:
        taught: soft labels (unlabelled, C, *spatial) and where they count (unlabelled, 1, *spatial); None without any.
    """

    taught: tuple[Tensor, Tensor] | None


class MeanTeacherObjective(Objective[MeanTeacherStep]):
    """Supervision of labelled samples, and the teacher's predictions as soft labels of unlabelled ones.

    The teacher sees the images as the loader gives them, the student a stronger view. Where a box of a labelled image
    was pasted, its label is the target.

    Args:
        knowledge: what each case annotates.
        supervised: of labelled samples.
        teacher: gives logits (B, C, *spatial) for images, in evaluation mode.
        weight: of the consistency after the ramp.
        ramp_end: share of the training during which the weight rises.
        temperature: sharpens the teacher's predictions if below 1.

    Source: Tarvainen & Valpola, NeurIPS 2017, with strong views; the loss is nnU-Net's with soft targets [E].
    """

    term_names = ("supervised", "consistency")

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        teacher: Callable[[Tensor], Tensor],
        *,
        weight: float,
        ramp_end: float,
        temperature: float,
    ):
        self.knowledge = knowledge
        self.supervised = supervised
        self.teacher = teacher
        self.weight = weight
        self.ramp_end = ramp_end
        self.temperature = temperature
        self._confident = torch.zeros(2, device=knowledge.device)

    @torch.no_grad()
    def ask(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor] | None:
        """Asks the teacher for soft labels, and where they count."""
        views = batch.views
        if views is None or self.weight == 0:
            return None
        weak = batch.data[: views.unlabelled] if views.weak is None else views.weak
        regions = self.knowledge.table.is_regions
        said = probabilities(self.teacher(weak), regions=regions, temperature=self.temperature)
        inside = views.inside[: views.unlabelled]
        sure = torch.maximum(said, 1 - said).amin(1, keepdim=True) > CONFIDENT
        self._confident += torch.stack([(sure & inside).sum(), inside.sum()])
        ignore = self.supervised.ignore_label
        return pasted_targets(said, inside, batch, self.knowledge, ignore)

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> MeanTeacherStep:
        """See :meth:`Objective.prepare`."""
        return MeanTeacherStep(batch, progress, said[self])

    def terms(self, peer: int, outputs: Sequence[Output], step: MeanTeacherStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        levels = outputs[peer].levels
        if step.taught is None:
            consistency = levels[0].flatten()[0] * 0
        else:
            target, inside = step.taught
            regions = self.knowledge.table.is_regions
            consistency = soft_label_loss(levels[0][: len(target)], target, inside, regions=regions)
        return {
            "supervised": Term(self.supervised.labelled(levels, step.batch)),
            "consistency": Term(consistency, self.weight * ramp(step.progress, 0.0, self.ramp_end)),
        }

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports how sure the teacher is."""
        sure, voxels = self._confident.tolist()
        self._confident.zero_()
        return ({"share of unlabelled voxels of which the teacher is sure": sure / voxels} if voxels else {}), []

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {"confident": self._confident.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self._confident.copy_(state["confident"])
