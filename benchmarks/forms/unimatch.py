"""One student sees unlabelled images in two stronger views, and once more with features dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.batches.views import strengthen
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.objectives import Output, Progress, Said, Term
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective, TaughtStep
from nnunet_mutual.objectives.teaching import Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer

DROPPED = 0.5  # share of the channels of each encoder stage
FEATURES, STRONG = 0.5, 0.25  # of the consistency: of dropped features, of each strong view; as published


@dataclass(frozen=True)
class StreamsStep(TaughtStep):
    """One step.

    Attributes:
        second: the batch with other strong views; None without any unlabelled samples.
    """

    second: Batch | None


class UniMatchObjective(MeanTeacherObjective):
    """The average teaches three streams of one student: two strong views, and the weak view with dropped features.

    Args:
        arguments: of :class:`MeanTeacherObjective`.
        student: gives logits (unlabelled, C, *spatial) of images, of which features are dropped or not.
        view: makes other strong views of a batch without any.
        options: of :class:`MeanTeacherObjective`.

    Source: Yang et al., CVPR 2023, arXiv 2208.09910; with an average as the teacher and soft targets [E].
    """

    def __init__(
        self,
        *arguments: Any,
        student: Callable[..., Tensor],
        view: Callable[[Batch], Batch],
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        self.student = student
        self.view = view

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> StreamsStep:
        """See :meth:`Objective.prepare`."""
        lessons, second = said[self] or (None, None)
        return StreamsStep(batch, progress, lessons, second)

    @torch.no_grad()
    def ask(self, batch: Batch, progress: Progress) -> Any:
        """Returns a lesson of each stream, of what the teacher says once, and the second view."""
        if batch.views is None or self.weight == 0:
            return None
        data = torch.cat([batch.weak, batch.data[batch.views.unlabelled :]])
        weak = replace(batch, data=data, views=replace(batch.views, weak=None, pasted=(), pose=None))
        second = self.view(weak)
        said = probabilities(self.teaching.ask(0, batch), regions=self.teaching.regions)  # type: ignore[misc]
        return [self.teaching.lesson(said, seen) for seen in (batch, second, weak)], second

    def terms(self, peer: int, outputs: Sequence[Output], step: StreamsStep) -> dict[str, Term]:  # type: ignore[override]
        """See :meth:`Objective.terms`."""
        terms = super().terms(peer, outputs, step)
        if step.second is None or step.lessons is None:
            return terms
        strong, weak = step.second.data[: len(step.second.weak)], step.second.weak
        _, of_second, of_features = step.lessons
        second = self.teaching.loss(self.student(strong), of_second)
        features = self.teaching.loss(self.student(weak, dropped=True), of_features)
        first, weight = terms["consistency"].value, terms["consistency"].weight
        return {**terms, "consistency": Term(STRONG * (first + second) + FEATURES * features, weight)}


class UniMatchTrainer(MeanTeacherTrainer):
    """A second strong stream and one of dropped features."""

    def build_taught(self, teaching: Teaching, **options: float) -> UniMatchObjective:
        """See :meth:`MeanTeacherTrainer.build_taught`."""
        chosen = self.settings

        def view(batch: Batch) -> Batch:
            return strengthen(batch, intensity=chosen.strong_intensity, partners=chosen.paste_from)

        return UniMatchObjective(self.supervised, teaching, student=self.student, view=view, **options)

    def student(self, images: Tensor, *, dropped: bool = False) -> Tensor:
        """Returns the network's logits of the highest resolution, with a graph."""
        network: Any = unwrap(self.peers.networks[0])
        skips = network.encoder(images)
        if dropped:
            skips = [nn.functional.dropout3d(skip, DROPPED) for skip in skips]
        return network.decoder(skips)[0]
