"""Prototypes that vote."""

from __future__ import annotations

from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import mean_of, probabilities
from nnunet_mutual.objectives.mean_teacher import FilteredTeacherObjective
from nnunet_mutual.objectives.teaching import Lesson
from nnunet_mutual.trainers import MutualPrototypeTrainer


class VotedTeacherObjective(FilteredTeacherObjective):
    """The class scores of the prototypes, several of each class, are a second head, and both have one vote."""

    def judged(self, logits: Tensor, scores: Tensor, batch: Batch) -> Lesson:
        """See :meth:`FilteredTeacherObjective.judged`."""
        votes = [probabilities(z, regions=self.teaching.regions) for z in (logits, scores)]
        return self.teaching.lesson(mean_of(votes), batch)


class PrototypeVoteTrainer(MutualPrototypeTrainer):
    """A mean teacher and prototypes that vote."""

    filtered = VotedTeacherObjective
