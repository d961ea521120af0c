"""Stage 1 of deep mutual learning among partially labelled datasets: networks of different organs keep apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnunet_mutual.annotation.label_groups import LabelGroup, home
from nnunet_mutual.batches.batch import Batch
from nnunet_mutual.errors import MutualError
from nnunet_mutual.losses.difference import (
    feature_difference,
    organ_vectors,
    prediction_difference,
    prediction_difference_regions,
)
from nnunet_mutual.objectives.base import Objective, Output, Progress, Said, Step, Term
from nnunet_mutual.objectives.collapse import CollapseAlarm
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import organ_masks, ramp
from nnunet_mutual.objectives.sampling import summed
from nnunet_mutual.objectives.supervised import SupervisedObjective
from nnunet_mutual.settings import TermWeights

STRIDE = 4  # of the features
PROJECTED_SIZE = 64
BANK_MOMENTUM = 0.99
LEAST_VOXELS = 8


@dataclass(frozen=True)
class PartialLoss(TermWeights):
    """Weights of the terms of mutual learning, next to the supervised loss of weight 1.

    Attributes:
        pd: prediction difference, stage 1.
        fd: feature difference, stage 1.
        ps: prediction similarity, stage 2.
        dfs: dynamic feature similarity, stage 2.
    """

    pd: float = 1.0
    fd: float = 0.1
    ps: float = 1.0
    dfs: float = 0.1


@dataclass(frozen=True)
class DifferenceStep(Step):
    """One step; both are empty where no features are compared.

    Attributes:
        masks: (B, C, *spatial) bool, organs at the resolution of the features.
        vectors: of each network, (B, C, F) what they look like to it and (B, C) which are large enough.
    """

    masks: Tensor | None
    vectors: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ramp:
    """Shares of a stage between which the weights of pd, fd and dfs rise."""

    start: float = 0.05
    end: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise MutualError(
                'settings "ramp.start" and "ramp.end" must be shares of a stage, start before end, '
                f"found {self.start} and {self.end}"
            )

    def at(self, progress: Progress) -> float:
        """Returns the share of the weights, from 0 to 1."""
        return ramp(progress, self.start, self.end)


class DifferenceObjective(Objective[DifferenceStep]):
    """Difference mutual learning of partial-organ networks [S]; the form of each term is our reading [I].

    ``seg`` is the tri-state loss on what cases annotate of the network's labels. ``pd`` pushes the network's labels
    away from voxels where a case annotates another label. ``fd`` pushes features of its labels away from features of
    other labels: ``projected`` compares networks through a shared trained projection, ``own`` compares the network's
    features with running means of its own organs.

    Args:
        knowledge: what each case annotates.
        supervised: computes the tri-state loss.
        groups: labels of each network.
        loss: weights of pd and fd, after the ramp.
        form: of fd.
        feature_size: channels of the features.
        rise: of the weights of pd and fd.
        foreground_from: samples from this one on hold foreground by force, and are left out of the collapse alarm.

    Source: arXiv 2407.12611.
    """

    term_names = ("seg", "pd", "fd")
    partner_levels = (1,)  # to count volumes

    def __init__(
        self,
        knowledge: Knowledge,
        supervised: SupervisedObjective,
        groups: Sequence[LabelGroup],
        *,
        loss: PartialLoss,
        form: Literal["projected", "own"],
        feature_size: int,
        rise: Ramp,
        foreground_from: int,
    ):
        self.knowledge = knowledge
        self.supervised = supervised
        self.loss = loss
        self.form = form
        self.rise = rise
        self.feature_strides = (STRIDE,) if loss.fd > 0 else ()
        self.tables = [knowledge.limited(group) for group in groups]
        self.rivals = [knowledge.rivals(group) for group in groups]
        cases = knowledge.cases
        self.teaches = [[bool(case.drawn & group) for case in cases] for group in groups]
        self.opposes = [tables.flatten(1).any(1).tolist() for tables in self.rivals]
        self.home = [home(groups, case.annotated) for case in cases]
        self.learns = knowledge.mask(groups)  # (P, C)
        classes = self.learns.shape[1]
        # May the features of label a (row) of network n be compared with those of label b (column)?
        apart = torch.zeros(len(groups), classes, classes, dtype=torch.bool)
        for n, group in enumerate(groups):
            for a in group:
                for b in set(knowledge.table.labels) - group:
                    apart[n, knowledge.channel[a], knowledge.channel[b]] = knowledge.exclusive(a, b)
        self.apart = apart.to(knowledge.device)
        self.bank = torch.zeros(len(groups), classes, feature_size, device=knowledge.device)
        self.filled = torch.zeros(len(groups), classes, dtype=torch.bool, device=knowledge.device)
        if self.feature_strides and form == "projected":
            self.heads = nn.Linear(feature_size, PROJECTED_SIZE, bias=False)
        self.alarm = CollapseAlarm(knowledge, groups, foreground_from)

    def prepare(self, outputs: Sequence[Output], batch: Batch, progress: Progress, said: Said) -> DifferenceStep:
        """Finds the organs at the resolution of the features, and what they look like to every network."""
        if not self.feature_strides:
            return DifferenceStep(batch, progress, None, [])
        masks = organ_masks(batch, self.knowledge, outputs[0].features[STRIDE].shape[2:])
        return DifferenceStep(batch, progress, masks, [_vectors(output, masks) for output in outputs])

    def terms(self, peer: int, outputs: Sequence[Output], step: DifferenceStep) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        own, batch = outputs[peer], step.batch
        rise = self.rise.at(step.progress)
        teaching = [i for i, pattern in enumerate(batch.patterns) if self.teaches[peer][pattern]]
        seg = self.supervised.loss(own.levels, batch, self.tables[peer], teaching)
        fd = own.levels[0].flatten()[0] * 0 if step.masks is None else self._feature_difference(peer, own, step)
        return {
            "seg": Term(seg),
            "pd": Term(self._prediction_difference(peer, own.levels[0], batch), self.alarm.capped(self.loss.pd * rise)),
            "fd": Term(fd, self.loss.fd * rise),
        }

    def update(self, outputs: Sequence[Output], step: DifferenceStep) -> None:
        """Moves the running means of organ features and counts predicted volumes."""
        homes = [self.home[pattern] for pattern in step.batch.patterns]
        self.alarm.count(outputs, step.batch, homes, self.loss.pd * self.rise.at(step.progress))
        if not self.feature_strides or self.form != "own":
            return
        for n, (vectors, valid) in enumerate(step.vectors):
            finite = torch.isfinite(vectors).all(2)  # a step that overflowed in float16 must not stay in the means
            weight = (valid & finite & self.learns[n]).float()[..., None]
            sums = torch.cat([(vectors.masked_fill(weight == 0, 0) * weight).sum(0), weight.sum(0)], 1)
            count = summed(sums)[:, -1:]
            mean = sums[:, :-1] / count.clamp_min(1)
            seen = count[:, 0] > 0
            momentum = torch.where(self.filled[n], BANK_MOMENTUM, 0.0)[:, None]
            moved = momentum * self.bank[n] + (1 - momentum) * mean
            self.bank[n] = torch.where(seen[:, None], moved, self.bank[n])
            self.filled[n] |= seen

    def diagnose(self) -> tuple[dict[str, float], list[str]]:
        """Reports predicted volumes of each label per source group; see :class:`CollapseAlarm`."""
        return self.alarm.diagnose()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Objective.state_dict`."""
        return {"bank": self.bank.clone(), "filled": self.filled.clone(), "alarm": self.alarm.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        self.bank.copy_(state["bank"])
        self.filled.copy_(state["filled"])
        self.alarm.load_state_dict(state["alarm"])

    def _prediction_difference(self, peer: int, logits: Tensor, batch: Batch) -> Tensor:
        samples = [i for i, pattern in enumerate(batch.patterns) if self.opposes[peer][pattern]]
        if not samples or self.loss.pd == 0:
            return logits.flatten()[0] * 0
        rivals = self.rivals[peer][batch.pattern_index]
        if self.knowledge.table.is_regions:
            has_ignore = self.supervised.ignore_label is not None
            return prediction_difference_regions(
                logits, batch.target[0], rivals.transpose(1, 2).float(), has_ignore=has_ignore
            )
        return prediction_difference(logits, batch.target[0], rivals, ignore_label=self.supervised.ignore_label)

    def _feature_difference(self, peer: int, own: Output, step: DifferenceStep) -> Tensor:
        assert step.masks is not None
        vectors, valid = _vectors(own, step.masks)
        samples, classes = valid.shape
        apart = self.apart[peer]
        if self.form == "own":  # features at organs of others, away from the means of the network's organs
            here = valid[:, :, None] & apart.transpose(0, 1) & self.filled[peer]
            return feature_difference(vectors.flatten(0, 1), self.bank[peer], here.flatten(0, 1))
        assert self.heads is not None
        others = torch.stack([v for v, _ in step.vectors])  # (P, B, C, F)
        seen = torch.stack([found for _, found in step.vectors]) & self.learns[:, None]
        seen[peer] = False
        pairs = (
            (valid & self.learns[peer]).view(samples, classes, 1, 1, 1) & seen & apart.view(1, classes, 1, 1, classes)
        )
        projected = self.heads(vectors.flatten(0, 1))
        return feature_difference(projected, self.heads(others.flatten(0, 2)), pairs.flatten(2).flatten(0, 1))


def _vectors(output: Output, masks: Tensor) -> tuple[Tensor, Tensor]:
    return organ_vectors(output.features[STRIDE], masks, minimum=LEAST_VOXELS)
