"""Prototypes rectify calibrated probabilities, by a weighted mean of logits that agreement does not double."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forms.known import labelled_truth, likelihood_loss
from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import mean_of, probabilities
from nnunet_mutual.objectives import Output, Progress, Said, Term
from nnunet_mutual.objectives.mean_teacher import FilteredTeacherObjective, TaughtStep
from nnunet_mutual.objectives.sampling import spread
from nnunet_mutual.objectives.teaching import Lesson
from nnunet_mutual.trainers import MutualPrototypeTrainer


class Calibration(nn.Module):
    r"""Temperatures of logits z and class scores M, and the weight w of M: :math:`(1 - w) z / T_z + w M / T_M`.

    Source: temperature scaling of Guo et al., ICML 2017; in place of z + (1 - mu) M of arXiv 2502.11456 [E].
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_temperatures = nn.Parameter(torch.zeros(2))
        self.weight = nn.Parameter(torch.zeros(()))  # before a sigmoid

    def calibrated(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both in the units of log-probabilities, of any shape."""
        logit_scale, score_scale = (-self.log_temperatures).exp()
        return logits.float() * logit_scale, scores.float() * score_scale

    def mixed(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Returns the weighted mean of what is calibrated."""
        return torch.lerp(logits, scores, self.weight.sigmoid())


@dataclass(frozen=True)
class CalibratedStep(TaughtStep):
    """One step.

    Attributes:
        labelled: logits and class scores of the labelled samples, of other intensities than the student sees.
    """

    labelled: tuple[Tensor, Tensor]


class CalibratedTeacherObjective(FilteredTeacherObjective):
    """Prototypes rectify the teacher after both were calibrated on labelled voxels by their likelihood."""

    term_names = ("supervised", "consistency", "calibration")

    def __init__(self, *arguments: Any, **options: float):
        super().__init__(*arguments, **options)
        self.heads = self.calibration = Calibration().to(self.supervised.knowledge.device)

    def judged(self, logits: Tensor, scores: Tensor, batch: Batch) -> Lesson:
        """See :meth:`FilteredTeacherObjective.judged`."""
        with torch.no_grad():
            rectified = self.calibration.mixed(*self.calibration.calibrated(logits, scores))
        return self.teaching.lesson(probabilities(rectified, regions=False), batch)

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> CalibratedStep:
        """See :meth:`Objective.prepare`."""
        assert batch.views is not None
        lessons = super().prepare(outputs, batch, progress, said).lessons
        logits, scores = (values[batch.views.unlabelled :] for values in said[self.prototypes])
        return CalibratedStep(batch, progress, lessons, (logits, scores))

    def terms(self, peer: int, outputs: Sequence[Output], step: CalibratedStep) -> dict[str, Term]:  # type: ignore[override]
        """See :meth:`Objective.terms`."""
        return {**super().terms(peer, outputs, step), "calibration": Term(self._calibration(step))}

    def _calibration(self, step: CalibratedStep) -> Tensor:
        """Of each by itself, and of their mean, which moves the weight alone."""
        losses = []
        for sample, said in enumerate(zip(*step.labelled, strict=True), len(step.batch.keys) - len(step.labelled[0])):
            places = spread(said[0][0].numel(), said[0].device)
            truth, known = labelled_truth(step.batch, sample, places, self.supervised)
            shown = self.calibration.calibrated(*(values.flatten(1)[:, places] for values in said))
            together = self.calibration.mixed(*(values.detach() for values in shown))
            losses += [likelihood_loss(z.log_softmax(0), truth, known) for z in (*shown, together)]
        return mean_of(losses)

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports temperatures and weight, too."""
        numbers, warnings = super().diagnose()
        names = "temperature of the teacher", "temperature of the class scores"
        found = dict(zip(names, self.calibration.log_temperatures.exp().tolist(), strict=True))
        return {**numbers, **found, "weight of the class scores": self.calibration.weight.sigmoid().item()}, warnings


class CalibratedPrototypeTrainer(MutualPrototypeTrainer):
    """A mean teacher, rectified by prototypes after calibration."""

    filtered = CalibratedTeacherObjective
