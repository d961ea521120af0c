"""Prototypes that learn labelled images, and how much they are to be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.batches.views import change_intensity
from nnunet_mutual.modules.ema import MovingAverage
from nnunet_mutual.modules.interaction import DynamicInteraction
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.supervised import SupervisedObjective
from nnunet_mutual.settings import TermWeights

Teacher = Callable[[Tensor], tuple[list[Tensor], Tensor]]


@dataclass(frozen=True)
class PrototypeLoss(TermWeights):
    """Weights of the terms, next to the supervised loss of weight 1.

    Attributes:
        prototypes: of the class scores M, on labelled images.
        pseudo: of rectified pseudo labels.
        contrast: of uncertain voxels with their class.
    """

    prototypes: float = 1.0
    pseudo: float = 1.0
    contrast: float = 0.1


@dataclass(frozen=True)
class PrototypeStep(Step):
    """One step.

    Attributes:
        said: the teacher's logits z' and scores M', (B, C, *spatial) each.
    """

    said: tuple[Tensor, Tensor]


class PrototypeObjective(Objective[PrototypeStep]):
    """The map of class scores M learns labelled images; mu learns how much of it the teacher's logits need.

    The teacher is asked once per step: about unlabelled images as the loader gave them, and about labelled ones with
    other intensities, so that mu is not learnt on what the network was just fitted to. A prototype learns where its
    label is annotated, as the network does.

    Args:
        knowledge: what each case annotates.
        supervised: nnU-Net's loss of what they annotate.
        interaction: the prototypes, trained here.
        average: their moving average, which the teacher uses.
        strides: of the coarser and the finer feature map.
        teacher: gives logits z' of all levels and scores M' for images, in evaluation mode.
        weight: of the loss of M.

    Source: arXiv 2502.11456; the loss of mu is [E].
    """

    term_names = ("prototypes", "trust")

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        interaction: DynamicInteraction,
        average: MovingAverage,
        strides: Sequence[int],
        teacher: Teacher,
        *,
        weight: float,
    ):
        self.knowledge = knowledge
        self.supervised = supervised
        self.heads = self.interaction = interaction
        self.average = average
        self.feature_strides = tuple(strides)
        self.teacher = teacher
        self.weight = weight

    @torch.no_grad()
    def ask(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """Asks the teacher for logits z' and scores M', (B, C, *spatial) each."""
        views = batch.views
        first = 0 if views is None else views.unlabelled
        plain = batch.data[:first] if views is None else batch.weak
        changed = [change_intensity(image) for image in batch.data[first:]]
        (logits, *_), scores = self.teacher(torch.stack([*plain, *changed]))
        return logits, scores

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> PrototypeStep:
        """See :meth:`Objective.prepare`."""
        return PrototypeStep(batch, progress, said[self])

    def terms(self, peer: int, outputs: Sequence[Output], step: PrototypeStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        batch = step.batch
        first = 0 if batch.views is None else batch.views.unlabelled
        logits, scores_of_teacher = (said[first:] for said in step.said)
        maps = (outputs[peer].features[stride][first:] for stride in self.feature_strides)
        scores = self.interaction(*maps, batch.data.shape[2:])
        return {
            "prototypes": Term(self.supervised.finest(scores, batch), self.weight),
            "trust": Term(self.supervised.finest(self.interaction.rectify(logits, scores_of_teacher), batch)),
        }

    def update(self, outputs: Sequence[Output], step: PrototypeStep) -> None:
        """Moves the average of the prototypes."""
        self.average.update(self.interaction)

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports mu."""
        mu = self.interaction.mu.tolist()
        return {f"mu of {label}": mu[channel] for label, channel in self.knowledge.channel.items()}, []

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.average.load_state_dict(state["average"])
