"""Labelled images alone at first, with boxes of each other; unlabelled ones when there is something to teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_mutual.batches.batch import Batch, mixed
from nnunet_mutual.batches.views import draw_boxes
from nnunet_mutual.objectives import Output, Progress, Term
from nnunet_mutual.objectives.mean_teacher import MeanTeacherObjective, TaughtStep
from nnunet_mutual.objectives.organs import ramp
from nnunet_mutual.objectives.teaching import Lesson, Teaching
from nnunet_mutual.trainers import MeanTeacherTrainer

WARM_UP = 0.2  # share of the training


class WarmUpObjective(MeanTeacherObjective):
    """The mean teacher, whose ramp begins at the end of the warm-up; nobody is asked before.

    Source: the labelled-only first stage with pasting of Bai et al., CVPR 2023, in the same number of updates [E].
    """

    def ask(self, batch: Batch, progress: Progress) -> list[Lesson] | None:
        """See :meth:`Objective.ask`."""
        return None if progress.fraction < WARM_UP else super().ask(batch, progress)

    def terms(self, peer: int, outputs: Sequence[Output], step: TaughtStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        terms = super().terms(peer, outputs, step)
        weight = self.weight * ramp(step.progress, WARM_UP, WARM_UP + self.ramp_end)
        return {**terms, "consistency": Term(terms["consistency"].value, weight)}


def copy_paste(batch: Batch) -> Batch:
    """Pastes boxes, labels included, of labelled samples into about half of the labelled ones."""
    assert batch.views is not None
    first, samples = batch.views.unlabelled, len(batch.data)
    origin = torch.arange(samples).view(-1, 1, *[1] * (batch.data.ndim - 2))
    origin = origin.repeat(1, 1, *batch.data.shape[2:])
    for paste in draw_boxes(samples - first, samples - first, batch.data.shape[2:], "unlabelled"):
        origin[(first + paste.into, 0, *paste.box)] = first + paste.origin
    origin = origin.to(batch.data.device, non_blocking=True)
    target = [mixed(level, _of_size(origin, level)) for level in batch.target]
    views = replace(batch.views, inside=mixed(batch.views.inside, origin))
    return replace(batch, data=mixed(batch.data, origin), target=target, views=views)


def _of_size(origin: Tensor, level: Tensor) -> Tensor:
    """Of a lower resolution, as nnU-Net downsamples labels for deep supervision."""
    return functional.interpolate(origin.float(), size=level.shape[2:], mode="nearest-exact").long()


class WarmUpTrainer(MeanTeacherTrainer):
    """The mean teacher after a labelled-only warm-up with pasting."""

    def build_taught(self, teaching: Teaching, **options: float) -> WarmUpObjective:
        """See :meth:`MeanTeacherTrainer.build_taught`."""
        return WarmUpObjective(self.supervised, teaching, **options)

    def training_batch(self, raw: dict[str, Any]) -> Batch:
        """See :meth:`MutualTrainer.training_batch`."""
        batch = super().training_batch(raw)
        early = batch.views is not None and self.progress().fraction < WARM_UP
        return copy_paste(batch) if early else batch
