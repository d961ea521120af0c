"""Labels of the teacher keep their largest piece in each patch, whatever the dataset declares (``one_piece``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import mean_of
from nnunet_mutual.losses.pieces import in_one_piece
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.teaching import Lesson, Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer, MutualCorrelationTrainer, TaughtPartialTrainer


def largest_alone(said: Tensor) -> Tensor:
    """Takes away all other pieces of every label, those at the border of a patch, too."""
    labels = torch.arange(1, said.shape[1], device=said.device)
    return in_one_piece(said, labels, regions=False, border=False)


class OnePieceTeaching(Teaching):
    """Lessons of labels in one piece each."""

    def common(self, said: Sequence[Tensor], batch: Batch) -> Lesson:
        """See :meth:`Teaching.common`."""
        return self.lesson(largest_alone(mean_of(said)), batch)


class InnerPieceTeaching(Teaching):
    """Lessons without pieces that lie apart from the largest one and from the border."""

    def __init__(self, knowledge: Knowledge, *arguments: Any, **named: Any):
        super().__init__(knowledge, *arguments, **{**named, "one_piece": knowledge.table.labels})


class OnePieceTrainer(MeanTeacherTrainer):
    """The mean teacher, of labels in one piece each."""

    teaching = OnePieceTeaching


class InnerPieceTrainer(MeanTeacherTrainer):
    """The mean teacher with ``one_piece`` of every label."""

    teaching = InnerPieceTeaching


class OnePieceCorrelationTrainer(MutualCorrelationTrainer):
    """Two networks and their averages, of labels in one piece each."""

    teaching = OnePieceTeaching


class OnePieceTaughtTrainer(TaughtPartialTrainer):
    """Learns what cases do not draw from averages, of labels in one piece each; not of regions."""

    def _ask(self, teacher: int, images: Tensor) -> Tensor:
        said = largest_alone(super()._ask(teacher, images).softmax(1))
        return said.clamp_min(torch.finfo(said.dtype).tiny).log()
