"""A student learns from a moving average of itself what unlabelled images show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import agreement, probabilities
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.organs import ramp
from nnunet_mutual.objectives.prototypes import PrototypeObjective
from nnunet_mutual.objectives.supervised import SupervisedObjective
from nnunet_mutual.objectives.teaching import Lesson, Teaching


@dataclass(frozen=True)
class TaughtStep(Step):
    """One step.

    Attributes:
        lessons: of each network; None without any.
    """

    lessons: list[Lesson] | None


class MeanTeacherObjective(Objective[TaughtStep]):
    """Supervision of labelled samples, and the teachers' predictions as soft labels of unlabelled ones.

    The teachers see the images as the loader gives them, the student a stronger view. Where a box of a labelled image
    was pasted, its label is the target.

    Args:
        supervised: of labelled samples.
        teaching: who teaches whom, and how.
        weight: of the consistency after the ramp.
        ramp_end: share of the training during which the weight rises.

    Source: Tarvainen & Valpola, NeurIPS 2017, with strong views; the loss is nnU-Net's with soft targets [E].
    """

    term_names = ("supervised", "consistency")

    def __init__(self, supervised: SupervisedObjective, teaching: Teaching, *, weight: float, ramp_end: float):
        self.supervised = supervised
        self.teaching = teaching
        self.weight = weight
        self.ramp_end = ramp_end

    def ask(self, batch: Batch, progress: Progress) -> list[Lesson] | None:
        """Asks the teachers for soft labels, and where they count."""
        return None if batch.views is None or self.weight == 0 else self.teaching.lessons(batch)

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> TaughtStep:
        """See :meth:`Objective.prepare`."""
        return TaughtStep(batch, progress, said[self])

    def terms(self, peer: int, outputs: Sequence[Output], step: TaughtStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        levels = outputs[peer].levels
        consistency = levels[0].flatten()[0] * 0
        if step.lessons is not None:
            consistency = self.teaching.loss(levels[0], step.lessons[peer])
        return {
            "supervised": Term(self.supervised.labelled(levels, step.batch, peer)),
            "consistency": Term(consistency, self.weight * ramp(step.progress, 0.0, self.ramp_end)),
        }

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports how sure the teacher is."""
        return self.teaching.diagnose(), []

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {"confident": self.teaching.confident.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.teaching.confident.copy_(state["confident"])


class FilteredTeacherObjective(MeanTeacherObjective):
    """The same, where prototypes of the labelled images decide as the teacher does; elsewhere nothing is learnt.

    Args:
        supervised: of labelled samples.
        teaching: how the student is taught.
        prototypes: what learns the prototypes and asks the teacher, before this one.
        options: of :class:`MeanTeacherObjective`.

    Source: [E]; prototypes of arXiv 2502.11456.
    """

    def __init__(
        self, supervised: SupervisedObjective, teaching: Teaching, prototypes: PrototypeObjective, **options: float
    ):
        super().__init__(supervised, teaching, **options)
        self.prototypes = prototypes

    def ask(self, batch: Batch, progress: Progress) -> None:
        """The prototypes ask."""

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> TaughtStep:
        """See :meth:`Objective.prepare`."""
        if batch.views is None or self.weight == 0:
            return TaughtStep(batch, progress, None)
        logits, scores = (values[: batch.views.unlabelled] for values in said[self.prototypes])
        return TaughtStep(batch, progress, [self.judged(logits, scores, batch)])

    def judged(self, logits: Tensor, scores: Tensor, batch: Batch) -> Lesson:
        """Returns what is learnt.

        Args:
            logits: the teacher's of the weak views, (unlabelled, C, *spatial).
            scores: of the prototypes, likewise.
            batch: with views.
        """
        regions = self.teaching.regions
        agree = agreement(logits, scores, regions=regions)[:, None]
        return self.teaching.lesson(probabilities(logits, regions=regions), batch, agree)
