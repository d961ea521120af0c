"""Stage 2 of deep mutual learning among partially labelled datasets: full-organ networks teach each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_mutual.annotation.label_groups import LabelGroup, home
from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.losses.similarity import (
    feature_similarity,
    teaching_weights,
)
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import drawn_dice, moved, organ_masks
from nnunet_mutual.objectives.partial_organs import PartialLoss, Ramp
from nnunet_mutual.objectives.sampling import summed
from nnunet_mutual.objectives.supervised import SupervisedObjective

STRIDE = 4  # of the features
PROJECTED_SIZE = 64
MOMENTUM = 0.9


@dataclass(frozen=True)
class OrganLesson:
    """Who teaches which organ in one step.

    Attributes:
        masks: (B, C, *spatial) bool, organs at the resolution of the features.
        best: (B, C) the teacher of each organ on each image.
        omega: (B, P, C) how much each network is taught.
        features: projected, of each network, without a graph.
    """

    masks: Tensor
    best: Tensor
    omega: Tensor
    features: list[Tensor]


@dataclass(frozen=True)
class SimilarityStep(Step):
    """One step; without features there is no lesson."""

    lesson: OrganLesson | None


class SimilarityObjective(Objective[SimilarityStep]):
    """Similarity mutual learning of full-organ networks [S]; the form of each term is our reading [I].

    ``seg`` is the tri-state loss with true and pseudo labels on a network's own group and on cases of no group, ``ps``
    that with true labels only on the cases of other groups. ``dfs`` passes features of an organ from the network with
    the highest running Dice of that organ on a group's images to those that lag behind.

    Args:
        knowledge: what each case annotates, and which pseudo labels were accepted.
        supervised: computes the tri-state loss.
        groups: of which each network is the home of one; a single network is the home of all.
        loss: weights of ps, and of dfs after the ramp.
        feature_size: channels of the features.
        rise: of the weight of dfs.

    Source: arXiv 2407.12611.
    """

    term_names = ("seg", "ps", "dfs")
    partner_levels = (1,)  # for the running Dice

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        groups: Sequence[LabelGroup],
        *,
        loss: PartialLoss,
        feature_size: int,
        rise: Ramp,
    ):
        self.knowledge = knowledge
        self.supervised = supervised
        self.loss = loss
        self.rise = rise
        self.alone = len(groups) < 2
        self.feature_strides = (STRIDE,) if loss.dfs > 0 and not self.alone else ()
        self.home = [home(groups, case.annotated) for case in knowledge.cases]
        number = max(1, len(groups))
        classes = knowledge.tables.annotated.shape[1]
        # Running soft Dice of each network on the annotated labels of each group's images.
        self.scores = torch.full((number, number, classes), torch.nan, device=knowledge.device)  # group, network, label
        if self.feature_strides:
            first = nn.Linear(feature_size, PROJECTED_SIZE, bias=False)
            self.heads = nn.ModuleList([nn.Linear(feature_size, PROJECTED_SIZE, bias=False) for _ in range(number)])
            for head in self.heads:  # the networks start from the same weights, so the axes of their features agree
                head.load_state_dict(first.state_dict())

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> SimilarityStep:
        """Chooses who teaches which organ on the images of the batch."""
        if not self.feature_strides:
            return SimilarityStep(batch, progress, None)
        masks = organ_masks(batch, self.knowledge, outputs[0].features[STRIDE].shape[2:])
        best, omega = teaching_weights(self.scores)  # (G, C), (G, P, C)
        homes = [self.home[pattern] for pattern in batch.patterns]
        groups = torch.tensor([0 if g is None else g for g in homes]).to(best.device, non_blocking=True)
        inside = torch.tensor([g is not None for g in homes]).to(best.device, non_blocking=True)
        with torch.no_grad():
            features = [self._project(n, output) for n, output in enumerate(outputs)]
        lesson = OrganLesson(masks, best[groups], omega[groups] * inside[:, None, None], features)
        return SimilarityStep(batch, progress, lesson)

    def terms(self, peer: int, outputs: Sequence[Output], step: SimilarityStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        own, batch = outputs[peer], step.batch
        homes = [None if self.alone else self.home[pattern] for pattern in batch.patterns]
        mine = [i for i, group in enumerate(homes) if group is None or group == peer]
        others = [i for i, group in enumerate(homes) if group is not None and group != peer]
        nothing = own.levels[0].flatten()[0] * 0
        taught = self.loss.ps > 0 and not self.alone
        return {
            "seg": Term(self.supervised.loss(own.levels, batch, self.knowledge.pseudo_tables, mine)),
            "ps": Term(self.supervised.loss(own.levels, batch, None, others) if taught else nothing, self.loss.ps),
            "dfs": Term(
                nothing if step.lesson is None else self._feature_similarity(peer, own, step.lesson),
                self.loss.dfs * self.rise.at(step.progress),
            ),
        }

    def update(self, outputs: Sequence[Output], step: SimilarityStep) -> None:
        """Moves the running Dice of every network; processes share it, so that they agree on the teachers."""
        if not self.feature_strides:
            return
        batch = step.batch
        ignore = self.supervised.ignore_label
        found = torch.stack([drawn_dice(output, batch, self.knowledge, ignore) for output in outputs], 1)  # (B, P, C)
        homes = torch.tensor([-1 if (g := self.home[p]) is None else g for p in batch.patterns])
        homes = homes.to(found.device, non_blocking=True)
        of_group = (homes == torch.arange(len(self.scores), device=found.device)[:, None]).to(found)  # (G, B)
        known = torch.isfinite(found).to(found)
        sums = torch.stack([torch.tensordot(of_group, part, 1) for part in (torch.nan_to_num(found), known)])
        total, count = summed(sums)
        self.scores = moved(self.scores, total, count, MOMENTUM)

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports the running Dice of every network."""
        numbers = {}
        table = self.knowledge.table
        for g, of_group in enumerate(self.scores.cpu().tolist() if self.feature_strides else []):
            for n, of_network in enumerate(of_group):
                for label in table.labels:
                    value = of_network[self.knowledge.channel[label]]
                    if value == value:
                        numbers[f"soft Dice of {label} by network {n} on group {g}"] = value
        return numbers, []

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {"scores": self.scores.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.scores.copy_(state["scores"])

    def _project(self, peer: int, output: Output) -> Tensor:
        assert isinstance(self.heads, nn.ModuleList)
        return self.heads[peer](output.features[STRIDE].movedim(1, -1)).movedim(-1, 1)

    def _feature_similarity(self, peer: int, own: Output, lesson: OrganLesson) -> Tensor:
        student = self._project(peer, own)
        parts = []
        for teacher, features in enumerate(lesson.features):
            if teacher != peer:
                taught = lesson.omega[:, peer] * (lesson.best == teacher)
                parts.append(feature_similarity(student, features, lesson.masks, taught))
        return torch.stack(parts).sum()
