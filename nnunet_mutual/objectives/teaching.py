"""What averaged networks say of unlabelled images, as the target of those that learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.batches.poses import posed, posed_counts
from nnunet_mutual.losses.consistency import mean_of, probabilities, sharpened
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import pasted_targets
from nnunet_mutual.settings import SoftLoss

CONFIDENT = 0.95
LEAST_VOXELS = 8  # of a label in a sample, before its Dice says more than noise


@dataclass(frozen=True)
class Lesson:
    """What a student's unlabelled samples show, after boxes of other samples were pasted into them, in its pose.

    Attributes:
        target: (unlabelled, C, *spatial) sharpened probabilities.
        counted: (unlabelled, 1, *spatial) bool, where they count, or how much.
        present: (unlabelled, C) bool, labels of which each sample shows enough for a Dice of its own; None where one
            Dice is taken over the batch.
    """

    target: Tensor
    counted: Tensor
    present: Tensor | None


def shown(target: Tensor, counted: Tensor) -> Tensor:
    """Returns the labels of which samples show enough for a Dice of their own, (B, C) bool.

    Args:
        target: (B, C, *spatial) probabilities.
        counted: (B, 1, *spatial) where they count, or how much.
    """
    return ((target > 0.5) & (counted > 0)).flatten(2).sum(2) >= LEAST_VOXELS


class Teaching:
    """Lets moving averages teach: they see the images as the loader gives them, the students stronger views.

    Args:
        knowledge: what each case annotates.
        ignore_label: nnU-Net's, if there is one.
        ask: gives a teacher's logits (unlabelled, C, *spatial) of a batch's weak views, in evaluation mode; None where
            lessons are made of what others asked.
        teachers: of each student, whose mean prediction it learns.
        temperature: sharpens that if below 1.
        form: "batch": nnU-Net's Dice over the batch; "sample": squared Dice of each sample, of the labels of which its
            target has at least 8 voxels above 0.5 before it is sharpened.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        ignore_label: int | None,
        ask: Callable[[int, Batch], Tensor] | None,
        teachers: Sequence[Sequence[int]],
        *,
        temperature: float,
        form: SoftLoss,
    ):
        self.knowledge = knowledge
        self.ignore_label = ignore_label
        self.ask = ask
        self.teachers = [tuple(numbers) for numbers in teachers]
        self.temperature = temperature
        self.form = form
        self.regions = knowledge.table.is_regions
        self.confident = torch.zeros(2, device=knowledge.device)

    @torch.no_grad()
    def lessons(self, batch: Batch) -> list[Lesson]:
        """Asks the teachers; returns the lesson of each student."""
        assert self.ask is not None
        asked = sorted({number for numbers in self.teachers for number in numbers})
        said = {n: probabilities(self.ask(n, batch), regions=self.regions) for n in asked}
        different = {numbers: self.common([said[n] for n in numbers], batch) for numbers in {*self.teachers}}
        return [different[numbers] for numbers in self.teachers]

    def common(self, said: Sequence[Tensor], batch: Batch) -> Lesson:
        """Makes one lesson of what the teachers of a student said: their mean."""
        return self.lesson(mean_of(said), batch)

    @torch.no_grad()
    def lesson(self, said: Tensor, batch: Batch, where: Tensor | None = None) -> Lesson:
        """Makes a lesson of what was said.

        Args:
            said: (unlabelled, C, *spatial) probabilities of the weak views.
            batch: with views.
            where: (unlabelled, 1, *spatial) bool, voxels of which it may be learnt, or how much each counts; None for
                all inside of the images.
        """
        assert batch.views is not None
        inside = batch.views.inside[: batch.views.unlabelled]
        sharp = self._sharp(said)
        sure = torch.maximum(sharp, 1 - sharp).amin(1, keepdim=True) > CONFIDENT
        self.confident += torch.stack([(sure & inside).sum(), inside.sum()])
        learnt = inside if where is None else inside * where
        target, counted = pasted_targets(said, learnt, batch, self.knowledge, self.ignore_label)
        if batch.views.pose is not None:
            target, counted = posed(target, batch.views.pose).clamp(0, 1), posed_counts(counted, batch.views.pose)
        present = shown(target, counted) if self.form == "sample" else None
        return Lesson(self._sharp(target), counted, present)

    def _sharp(self, p: Tensor) -> Tensor:
        return sharpened(p, regions=self.regions, temperature=self.temperature)

    def loss(self, logits: Tensor, lesson: Lesson) -> Tensor:
        """Returns how far a student is from its lesson.

        Args:
            logits: (B, C, *spatial) of the batch.
            lesson: of this student.
        """
        mine, target, counted = logits[: len(lesson.target)], lesson.target, lesson.counted
        squared = self.form == "sample"
        return soft_label_loss(mine, target, counted, regions=self.regions, squared=squared, present=lesson.present)

    def diagnose(self) -> dict[str, float]:
        """Reports how sure the teachers were."""
        sure, voxels = self.confident.tolist()
        self.confident.zero_()
        return {"share of unlabelled voxels of which the teacher is sure": sure / voxels} if voxels else {}
