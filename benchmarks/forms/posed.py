"""Two networks that see unlabelled images in poses of their own, and learn what their averages say there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch, Views
from nnunet_mutual.batches.poses import draw_poses, posed, posed_counts
from nnunet_mutual.objectives.teaching import Lesson, Teaching, shown
from nnunet_mutual.trainers import MutualCorrelationTrainer


@dataclass(frozen=True)
class PosedViews(Views):
    """Views of which each student's is in a pose of its own.

    Attributes:
        poses: of each student, as ``pose``.
    """

    poses: Sequence[Tensor] = ()


class PosedTeaching(Teaching):
    """Lessons are posed as the views of their students are; what comes from outside of a patch teaches nothing."""

    def lessons(self, batch: Batch) -> list[Lesson]:
        """See :meth:`Teaching.lessons`."""
        assert isinstance(batch.views, PosedViews)
        return [_posed(lesson, pose) for lesson, pose in zip(super().lessons(batch), batch.views.poses, strict=True)]


def _posed(lesson: Lesson, pose: Tensor) -> Lesson:
    target, counted = posed(lesson.target, pose), posed_counts(lesson.counted, pose)
    return Lesson(target, counted, None if lesson.present is None else shown(target, counted))


class PosedCorrelationTrainer(MutualCorrelationTrainer):
    """Two networks, each turned and scaled differently, and their averages."""

    teaching = PosedTeaching

    def training_batch(self, raw: dict[str, Any]) -> Batch:
        """See :meth:`MutualTrainer.training_batch`."""
        batch = super().training_batch(raw)
        if batch.views is None:
            return batch
        number, seen = batch.views.unlabelled, [batch.data, *batch.views.further]
        poses = [draw_poses(number, batch.data.shape[2:]).to(batch.data.device, non_blocking=True) for _ in seen]
        turned = [
            torch.cat([posed(data[:number], pose), data[number:]]) for data, pose in zip(seen, poses, strict=True)
        ]
        known = {field.name: getattr(batch.views, field.name) for field in fields(Views)} | {"further": turned[1:]}
        return replace(batch, data=turned[0], views=PosedViews(**known, poses=poses))
