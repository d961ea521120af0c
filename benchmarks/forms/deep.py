"""The average teaches every resolution at which the network predicts, as labels do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from nnunet_mutual.objectives import Output, Term
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective, TaughtStep
from nnunet_mutual.objectives.teaching import Lesson, Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer


class DeepTeacherObjective(MeanTeacherObjective):
    """The mean teacher with nnU-Net's deep supervision of unlabelled images, too [E]."""

    def terms(self, peer: int, outputs: Sequence[Output], step: TaughtStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        terms = super().terms(peer, outputs, step)
        if step.lessons is None:
            return terms
        _, *levels = outputs[peer].levels
        weight, *weights = self.supervised.level_weights
        value = terms["consistency"].value * weight
        for share, logits in zip(weights, levels, strict=True):
            if share:
                lesson = coarser(step.lessons[peer], logits.shape[2:])
                value = value + share * self.teaching.loss(logits, lesson)
        return {**terms, "consistency": Term(value, terms["consistency"].weight)}


def coarser(lesson: Lesson, size: Sequence[int]) -> Lesson:
    """Returns a lesson of a lower resolution: means of what its voxels were taught, and of how much that counted."""
    target, counted = (_means(values, size) for values in (lesson.target, lesson.counted.float()))
    return replace(lesson, target=target, counted=counted)


def _means(values: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(values, size=tuple(size), mode="area")


class DeepTeacherTrainer(MeanTeacherTrainer):
    """The mean teacher at every resolution."""

    def build_taught(self, teaching: Teaching, **options: float) -> DeepTeacherObjective:
        """See :meth:`MeanTeacherTrainer.build_taught`."""
        return DeepTeacherObjective(self.supervised, teaching, **options)
