"""The student sees unlabelled images in another pose than its teacher, and learns what the teacher says there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from forms.one_piece import OnePieceTeaching
from nnunet_mutual.batches.batch import Batch, Views
from nnunet_mutual.objectives.teaching import LEAST_VOXELS, Lesson, Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer, MutualCorrelationTrainer

ANGLE = math.radians(30)  # at most, around each axis; nnU-Net's own for patches of about equal sides
SCALE = (0.7, 1.4)  # nnU-Net's own


@dataclass(frozen=True)
class PosedViews(Views):
    """Views of which each student's is in a pose of its own.

    Attributes:
        grids: of each student, (unlabelled, *spatial, axes) where each voxel of its view is in the teacher's, as in
            :func:`torch.nn.functional.grid_sample`.
    """

    grids: Sequence[Tensor] = ()


class PosedTeaching(Teaching):
    """Lessons are posed as the views of their students are; what comes from outside of a patch teaches nothing.

    Source: [E], after Li et al., TNNLS 2021 (arXiv 1903.00348), with continuous poses and moving averages.
    """

    def lessons(self, batch: Batch) -> list[Lesson]:
        """See :meth:`Teaching.lessons`."""
        assert isinstance(batch.views, PosedViews)
        return [posed(lesson, grid) for lesson, grid in zip(super().lessons(batch), batch.views.grids, strict=True)]


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


def pose(batch: Batch) -> Batch:
    """Poses what students see of the unlabelled images of a batch, of which they have views."""
    assert batch.views is not None
    number = batch.views.unlabelled
    seen = [batch.data, *batch.views.further]
    grids = [draw_grid(number, tuple(batch.data.shape[2:])).to(batch.data.device, non_blocking=True) for _ in seen]
    turned = []
    for data, grid in zip(seen, grids, strict=True):
        images = F.grid_sample(data[:number], grid, padding_mode="border", align_corners=False)
        turned.append(torch.cat([images, data[number:]]))
    known = {field.name: getattr(batch.views, field.name) for field in fields(Views)} | {"further": turned[1:]}
    return replace(batch, data=turned[0], views=PosedViews(**known, grids=grids))


class PosedTrainer(MeanTeacherTrainer):
    """The mean teacher's student, turned and scaled."""

    teaching = PosedTeaching

    def training_batch(self, raw: dict[str, Any]) -> Batch:
        """See :meth:`MutualTrainer.training_batch`."""
        return pose(super().training_batch(raw))


class PosedCorrelationTrainer(MutualCorrelationTrainer):
    """Two networks, each turned and scaled differently, and their averages."""

    teaching = PosedTeaching

    def training_batch(self, raw: dict[str, Any]) -> Batch:
        """See :meth:`MutualTrainer.training_batch`."""
        return pose(super().training_batch(raw))


class PosedPieceTeaching(PosedTeaching, OnePieceTeaching):
    """Posed lessons of labels in one piece each."""


class PosedPieceTrainer(PosedTrainer):
    """The mean teacher's student, turned and scaled, of labels in one piece each."""

    teaching = PosedPieceTeaching
