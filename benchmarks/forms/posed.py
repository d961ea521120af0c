"""The student sees unlabelled images in another pose than its teacher, and learns what the teacher says there."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.batches.batch import Batch, Views
from nnunet_mutual.objectives import Progress
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective
from nnunet_mutual.objectives.teaching import LEAST_VOXELS, Lesson, Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer

ANGLE = math.radians(30)  # at most, around each axis; nnU-Net's own for patches of about equal sides
SCALE = (0.7, 1.4)  # nnU-Net's own


@dataclass(frozen=True)
class PosedViews(Views):
    """Views of which the student's is posed anew.

    Attributes:
        grid: (unlabelled, *spatial, axes) where each voxel of the student's view is in the teacher's, as in
            :func:`torch.nn.functional.grid_sample`.
    """

    grid: Tensor | None = None


class PosedObjective(MeanTeacherObjective):
    """Lessons are posed as the student's view is; what comes from outside of a patch teaches nothing.

    Source: [E], after Li et al., TNNLS 2021 (arXiv 1903.00348), with continuous poses and a moving average.
    """

    def ask(self, batch: Batch, progress: Progress) -> list[Lesson] | None:
        """See :meth:`MeanTeacherObjective.ask`."""
        lessons = super().ask(batch, progress)
        if lessons is None:
            return None
        assert isinstance(batch.views, PosedViews) and batch.views.grid is not None
        return [posed(lesson, batch.views.grid) for lesson in lessons]


def posed(lesson: Lesson, grid: Tensor) -> Lesson:
    """Returns a lesson in another pose."""
    target = F.grid_sample(lesson.target, grid, align_corners=False)
    counted = F.grid_sample(lesson.counted.float(), grid, align_corners=False)
    present = lesson.present
    if present is not None:
        present = ((target > 0.5) & (counted > 0)).flatten(2).sum(2) >= LEAST_VOXELS
    return Lesson(target, counted, present)


def draw_grid(samples: int, size: tuple[int, ...]) -> Tensor:
    """Draws a rotation around each axis and a scale for each sample.

    Args:
        samples: number of them.
        size: of a patch; its voxels are taken for cubes.

    Returns:
        (samples, *size, axes).
    """
    axes = len(size)
    sides = np.array(size[::-1], dtype=float)  # grid_sample counts from the last axis
    poses = []
    for _ in range(samples):
        turn = np.eye(axes)
        for first in range(axes):
            for second in range(first + 1, axes):
                angle = np.random.uniform(-ANGLE, ANGLE)
                plane = np.eye(axes)
                plane[[first, first, second, second], [first, second, first, second]] = (
                    math.cos(angle),
                    -math.sin(angle),
                    math.sin(angle),
                    math.cos(angle),
                )
                turn = turn @ plane
        zoom = math.exp(np.random.uniform(*np.log(SCALE)))
        matrix = turn * zoom * sides[None] / sides[:, None]  # from shares of the sides to voxels and back
        poses.append(np.concatenate([matrix, np.zeros((axes, 1))], 1))
    return F.affine_grid(torch.tensor(np.stack(poses), dtype=torch.float32), [samples, 1, *size], align_corners=False)


class PosedTrainer(MeanTeacherTrainer):
    """The mean teacher's student, turned and scaled."""

    def build_taught(self, teaching: Teaching, **options: float) -> PosedObjective:
        """See :meth:`MeanTeacherTrainer.build_taught`."""
        return PosedObjective(self.supervised, teaching, **options)

    def training_batch(self, raw: dict[str, Any]) -> Batch:
        """Poses what the student sees of the unlabelled images; see :meth:`MutualTrainer.training_batch`."""
        batch = super().training_batch(raw)
        if batch.views is None:
            return batch
        number = batch.views.unlabelled
        grid = draw_grid(number, tuple(batch.data.shape[2:])).to(batch.data.device, non_blocking=True)
        images = F.grid_sample(batch.data[:number], grid, padding_mode="border", align_corners=False)
        known = {field.name: getattr(batch.views, field.name) for field in fields(Views)}
        return replace(batch, data=torch.cat([images, batch.data[number:]]), views=PosedViews(**known, grid=grid))
