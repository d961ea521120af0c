"""What cases leave open, networks learn from averaged weights; what cases say, from their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.consistency import mean_of, probabilities
from nnunet_mutual.losses.partial import allowed_classes, known_regions
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import ramp
from nnunet_mutual.objectives.supervised import SupervisedObjective
from nnunet_mutual.objectives.teaching import Lesson, shown

LEAST_SAMPLES = 20  # of an epoch, before a ratio of volumes says anything
LEAST_RATIO = 0.5
HALF = 0.5  # of a teacher's mass must be in S(v): renormalised to 1, a few per cent would be certainty from nothing


@dataclass(frozen=True)
class NotDrawnStep(Step):
    """One step.

    Attributes:
        lessons: of each network; None where no teacher is asked.
    """

    lessons: list[Lesson] | None


class NotDrawnObjective(Objective[NotDrawnStep]):
    r"""Supervision of every voxel by its own case, and what averages are sure of where that case does not decide.

    Teachers see the images as the loader gives them, networks mixtures of them; labels and what teachers say are
    mixed alike. At a voxel that may be of several classes S(v), the target is

    .. math:: q_k = p_k / \sum_{j \in S(v)} p_j \quad (k \in S(v))

    of the teachers' mean p, where more than half of p is in S(v), the largest q is above ``sure`` and all teachers
    decide alike; elsewhere the voxel keeps S(v) alone. Of regions, each that no relation decides is taught where its
    probability, or its complement's, is above ``sure``.

    Args:
        knowledge: what each case annotates.
        supervised: by that.
        ask: gives the logits (B, C, *spatial) of a teacher, by its number, in evaluation mode.
        teachers: of each network, whose mean it learns.
        weight: of what is taught, after the ramp; 0 asks nobody.
        ramp_end: share of the training during which it rises.
        sure: probability.
        foreground_from: samples from this one on hold foreground by force, and are left out where volumes are compared.

    Source: averaged weights, Tarvainen & Valpola, NeurIPS 2017; the target within S(v) is [E].
    """

    term_names = ("supervised", "not drawn")
    partner_levels = ()

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        ask: Callable[[int, Tensor], Tensor],
        teachers: Sequence[Sequence[int]],
        *,
        weight: float,
        ramp_end: float,
        sure: float,
        foreground_from: int,
    ):
        self.knowledge = knowledge
        self.supervised = supervised
        self.asked = ask
        self.teachers = [tuple(numbers) for numbers in teachers]
        self.weight = weight
        self.ramp_end = ramp_end
        self.sure = sure
        self.regions = knowledge.table.is_regions
        self.foreground_from = foreground_from
        self.taught = torch.zeros(2, device=knowledge.device)
        # Of each label where it is drawn and where it is not: share of a patch, and number of samples.
        self.volumes = torch.zeros(2, 2, knowledge.num_outputs, device=knowledge.device)

    @torch.no_grad()
    def ask(self, batch: Batch, progress: Progress) -> list[Lesson] | None:
        """Asks the averages, and makes a lesson of what they say together."""
        if batch.exchange is None or self.weight == 0:
            return None
        weak = batch.exchange.weak
        asked = sorted({number for numbers in self.teachers for number in numbers})
        said = {n: probabilities(self.asked(n, weak), regions=self.regions) for n in asked}
        make = self._lesson_of_regions if self.regions else self._lesson_of_labels
        self._measure(torch.stack([*said.values()]).mean(0), batch)
        lessons = {numbers: make([said[n] for n in numbers], batch) for numbers in {*self.teachers}}
        return [lessons[numbers] for numbers in self.teachers]

    def _measure(self, said: Tensor, batch: Batch) -> None:
        """Adds the volumes that the averages find."""
        drawn = self.knowledge.tables.annotated[batch.pattern_index][: self.foreground_from]
        share = said[: self.foreground_from].flatten(2).mean(2)
        for kind, where in enumerate((drawn, ~drawn)):
            self.volumes[kind] += torch.stack([(share * where).sum(0), where.sum(0)])

    def _in_part(self, batch: Batch) -> dict[str, Any]:
        """What decides where a label of which a part is drawn is absent, as for the supervised loss."""
        incomplete = self.knowledge.tables.incomplete
        found = None if incomplete is None else incomplete[batch.pattern_index]
        return {"incomplete": found, "margin": self.supervised.options["margin"]}

    def _lesson_of_labels(self, said: Sequence[Tensor], batch: Batch) -> Lesson:
        drawn, tables, ignore = batch.target[0].long(), self.knowledge.tables, self.supervised.ignore_label
        valid = drawn != (-1 if ignore is None else ignore)
        assert tables.possible is not None
        in_part = self._in_part(batch)
        allowed = allowed_classes(torch.where(valid, drawn, 0), tables.possible[batch.pattern_index], **in_part)
        mean = mean_of(said)
        mass = (mean * allowed).sum(1, keepdim=True)
        within = mean * allowed / mass.clamp_min(torch.finfo(mean.dtype).tiny)
        unclear = valid & (allowed.sum(1, keepdim=True) > 1)
        decided = [(p * allowed).max(1, keepdim=True).indices for p in said]  # on CPUs much faster than argmax
        alike = torch.stack([choice == decided[0] for choice in decided]).all(0)
        sure = (mass > HALF) & (within.amax(1, keepdim=True) > self.sure) & alike
        return self._mixed(within, unclear & sure, unclear, batch)

    def _lesson_of_regions(self, said: Sequence[Tensor], batch: Batch) -> Lesson:
        tables, pattern = self.knowledge.tables, batch.pattern_index
        assert tables.relations is not None
        has_ignore = self.supervised.ignore_label is not None
        relations, annotated = tables.relations[pattern], tables.annotated[pattern]
        options = {"has_ignore": has_ignore, **self._in_part(batch)}
        known, _ = known_regions(batch.target[0], relations, annotated, **options)
        unclear = known == 0
        if has_ignore:
            unclear = unclear & ~batch.target[0][:, -1:].bool()
        mean = mean_of(said)
        alike = torch.stack([(p > HALF) == (said[0] > HALF) for p in said]).all(0)
        sure = (torch.maximum(mean, 1 - mean) > self.sure) & alike
        return self._mixed(mean, unclear & sure, unclear, batch)

    def _mixed(self, target: Tensor, counted: Tensor, unclear: Tensor, batch: Batch) -> Lesson:
        """The lesson of the mixed images; a label has a Dice in samples that show enough of it."""
        assert batch.exchange is not None
        if batch.views is not None:
            counted, unclear = counted & batch.views.inside, unclear & batch.views.inside
        self.taught += torch.stack([counted.sum(), unclear.sum()])
        target, counted = batch.exchange.mixed(target), batch.exchange.mixed(counted)
        return Lesson(target, counted, shown(target, counted))

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> NotDrawnStep:
        """See :meth:`Objective.prepare`."""
        return NotDrawnStep(batch, progress, said[self])

    def terms(self, peer: int, outputs: Sequence[Output], step: NotDrawnStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        levels = outputs[peer].levels
        taught = levels[0].flatten()[0] * 0
        if step.lessons is not None:
            lesson = step.lessons[peer]
            options: dict[str, Any] = {"regions": self.regions, "squared": True, "present": lesson.present}
            taught = soft_label_loss(levels[0], lesson.target, lesson.counted, **options)
        return {
            "supervised": Term(self.supervised.loss(levels, step.batch)),
            "not drawn": Term(taught, self.weight * ramp(step.progress, 0.0, self.ramp_end)),
        }

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports of how much that was not drawn the averages were sure, and whether they unlearn labels there."""
        taught, unclear = self.taught.tolist()
        (drawn, drawn_samples), (other, other_samples) = self.volumes.tolist()
        self.taught.zero_()
        self.volumes.zero_()
        numbers = {"share of undecided voxels that are taught": taught / unclear} if unclear else {}
        warnings = []
        for label in self.knowledge.table.labels:
            n = self.knowledge.channel[label]
            if min(drawn_samples[n], other_samples[n]) < LEAST_SAMPLES or not drawn[n]:
                continue
            ratio = (other[n] / other_samples[n]) / (drawn[n] / drawn_samples[n])
            numbers[f"volume of {label} where it is not drawn, as a multiple of where it is"] = ratio
            if ratio < LEAST_RATIO:
                warnings.append(
                    f"the averages find {ratio:.2f} times as much {label} where it is not drawn as where it is; unless "
                    "these patients have so little of it, it is being unlearnt there: lower the weight"
                )
        return numbers, warnings

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {"taught": self.taught.clone(), "volumes": self.volumes.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.taught.copy_(state["taught"])
        self.volumes.copy_(state["volumes"])
