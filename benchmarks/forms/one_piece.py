"""Labels of the teacher keep their largest piece in each patch; what it found elsewhere is taught as background."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forms.pieces import in_one_piece
from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import mean_of
from nnunet_mutual.objectives.teaching import Lesson, Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer, MutualCorrelationTrainer, TaughtPartialTrainer


class OnePieceTeaching(Teaching):
    """Lessons of labels in one piece each.

    Attributes:
        border: whether pieces that reach the border of a patch stay.
    """

    border = False

    def common(self, said: Sequence[Tensor], batch: Batch) -> Lesson:
        """See :meth:`Teaching.common`."""
        return self.lesson(in_one_piece(mean_of(said), border=self.border), batch)


class InnerPieceTeaching(OnePieceTeaching):
    """Lessons without pieces that lie apart from the largest one and from the border."""

    border = True


class OnePieceTrainer(MeanTeacherTrainer):
    """The mean teacher, of labels in one piece each."""

    teaching = OnePieceTeaching


class InnerPieceTrainer(MeanTeacherTrainer):
    """The mean teacher, of labels in one piece inside of a patch."""

    teaching = InnerPieceTeaching


class OnePieceCorrelationTrainer(MutualCorrelationTrainer):
    """Two networks and their averages, of labels in one piece each."""

    teaching = OnePieceTeaching


class OnePieceTaughtTrainer(TaughtPartialTrainer):
    """Learns what cases do not draw from averages, of labels in one piece each."""

    def _ask(self, teacher: int, images: Tensor) -> Tensor:
        said = in_one_piece(super()._ask(teacher, images).softmax(1), border=False)
        return said.clamp_min(torch.finfo(said.dtype).tiny).log()
