"""Supervision by what each case annotates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor

from nnunet_mutual.batches.batch import Batch, by_hand, mixed
from nnunet_mutual.losses.partial import Mix, at_every_voxel, partial_sigmoid_loss, partial_softmax_loss
from nnunet_mutual.objectives.base import Objective, Output, Step, Term
from nnunet_mutual.objectives.knowledge import Knowledge, Tables


class SupervisedObjective(Objective[Step]):
    """Tri-state cross-entropy + Dice with nnU-Net's deep supervision, for each network.

    A batch in which every case annotates every label goes through nnU-Net's own loss: the value is the same and so is
    the cost.

    Args:
        knowledge: what each case says about each label.
        full_loss: nnU-Net's loss of (list of logits, list of targets), for fully annotated batches.
        level_weights: weight of each deep-supervision level.
        ignore_label: nnU-Net's ignore label, if the dataset has one.
        batch_dice: as the plans say.
        margin: of labels that are drawn in part, see :func:`~nnunet_mutual.losses.partial.beside`.
        gather: sums Dice statistics over processes.
    """

    term_names = ("supervised",)
    partner_levels = ()

    def __init__(
        self,
        knowledge: Knowledge,
        full_loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
        level_weights: Sequence[float],
        *,
        ignore_label: int | None,
        batch_dice: bool,
        margin: int = 0,
        gather: Callable[[Tensor], Tensor] | None = None,
    ):
        self.knowledge = knowledge
        self.full_loss = full_loss
        self.level_weights = level_weights
        self.options: dict[str, Any] = {"batch_dice": batch_dice, "margin": margin, "gather": gather}
        self.ignore_label = ignore_label
        # Processes must take the same path, or those that gather Dice statistics would wait for the others.
        self.may_shortcut = gather is None or all(knowledge.is_full)
        labelled = [full for full, case in zip(knowledge.is_full, knowledge.cases, strict=True) if case.drawn]
        self.may_shortcut_labelled = gather is None or all(labelled)

    def terms(self, peer: int, outputs: Sequence[Output], step: Step) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        return {"supervised": Term(self.loss(outputs[peer].levels, step.batch))}

    def labelled(self, levels: Sequence[Tensor], batch: Batch, peer: int = 0) -> Tensor:
        """Returns the loss of one network on the labelled stream of a batch, or on all of one without streams.

        Args:
            levels: logits of each deep-supervision level.
            batch: the batch.
            peer: the network, where not every one sees every sample.
        """
        first = 0 if batch.views is None else batch.views.unlabelled
        if batch.sight is not None:
            seen = [i for i in range(first, len(batch.keys)) if batch.sight.host[i][peer]]
            return self.loss(levels, batch, samples=seen)
        if not first:
            return self.loss(levels, batch)
        return self.loss(levels, batch, samples=range(first, len(batch.keys)), everywhere=True)

    def finest(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the loss at the highest resolution alone, of logits of the labelled stream (or of all without one).

        Args:
            logits: (labelled samples, C, *spatial).
            batch: the whole batch.
        """
        first = 0 if batch.views is None else batch.views.unlabelled
        known = None if batch.decided is None else batch.decided[0][first:]
        return self._level(
            logits, batch.target[0][first:], known, self.knowledge.tables, batch.pattern_index[first:], None
        )

    def loss(
        self,
        levels: Sequence[Tensor],
        batch: Batch,
        tables: Tables | None = None,
        samples: Sequence[int] | None = None,
        *,
        everywhere: bool = False,
    ) -> Tensor:
        """Returns the loss of one network.

        Args:
            levels: logits of each deep-supervision level.
            batch: the batch.
            tables: what to look up; supervision by all that is annotated by default.
            samples: which samples count, all by default; 0 (with zero gradient) for none.
            everywhere: whether every process has as many of them, all with labels.

        Where Dice statistics are gathered, all processes must give samples, or none.
        """
        tables = tables or self.knowledge.tables
        patterns, target, decided = batch.patterns, batch.target, batch.decided
        index, included = batch.pattern_index, None
        if samples is not None and len(samples) < len(patterns):
            if self.options["gather"] is not None and not everywhere:  # every process must take part in gathering
                included = torch.zeros(len(patterns), 1, dtype=torch.bool)
                included[list(samples)] = True
                included = included.to(index.device, non_blocking=True)
            elif not samples:
                return torch.stack([level.flatten()[0] * 0 for level in levels]).sum()
            else:
                patterns = [patterns[i] for i in samples]
                levels, target, (index,) = (_pick(tensors, samples) for tensors in (levels, target, [index]))
                decided = None if decided is None else _pick(decided, samples)
        # Whatever samples the other processes give, all must gather in the same way.
        alike = self.may_shortcut and (self.options["gather"] is None or samples is None)
        alike = self.may_shortcut_labelled if everywhere else alike
        origins = None if batch.exchange is None else batch.exchange.origins
        if alike and origins is None and all(tables.is_full[pattern] for pattern in patterns):
            return self.full_loss(levels, target)
        parts = []
        for i, weight in enumerate(self.level_weights):
            if weight > 0:
                known = None if decided is None else decided[i]
                mix = None if origins is None else partial(mixed, origin=origins[i])
                parts.append(weight * self._level(levels[i], target[i], known, tables, index, included, mix))
        return torch.stack(parts).sum()

    def _level(
        self,
        logits: Tensor,
        target: Tensor,
        decided: Tensor | None,
        tables: Tables,
        pattern: Tensor,
        included: Tensor | None,
        mix: Mix | None = None,
    ) -> Tensor:
        annotated = tables.annotated[pattern]
        in_part = None if tables.incomplete is None else tables.incomplete[pattern]
        if in_part is not None and included is not None:
            in_part = in_part & included
        weights = None if tables.weights is None else tables.weights[pattern]
        options = {"incomplete": in_part, "weights": weights, "mix": mix, **self.options}
        if tables.relations is not None:
            relations = tables.relations[pattern]
            if tables.decided is None or decided is None:
                known, target = None, by_hand(target, decided, in_part)
            else:  # of a region that somebody drew, every voxel is known
                known = decided | at_every_voxel(annotated & ~tables.decided[pattern], target)
            if included is not None:
                annotated = annotated & included
                relations = relations.where(included)
            has_ignore = self.ignore_label is not None
            return partial_sigmoid_loss(
                logits, target, relations, annotated, has_ignore=has_ignore, decided=known, **options
            )
        assert tables.possible is not None
        annotated = annotated if included is None else annotated & included
        return partial_softmax_loss(
            logits,
            target,
            tables.possible[pattern],
            annotated,
            ignore_label=self.ignore_label,
            drawn=tables.drawn,
            by_hand=tables.by_hand,
            leaves_open=tables.open is not None,
            **options,
        )


def _pick(tensors: Sequence[Tensor], samples: Sequence[int]) -> list[Tensor]:
    """Samples of a batch, without a copy where they are neighbours."""
    first, last = samples[0], samples[-1]
    if list(samples) == list(range(first, last + 1)):
        return [tensor[first : last + 1] for tensor in tensors]
    return [torch.stack([tensor[i] for i in samples]) for tensor in tensors]


def deep_supervision_weights(levels: int, *, keep_last: bool) -> list[float]:
    """nnU-Net's weights: halved at each level, none at the lowest resolution, summing to 1.

    Args:
        levels: number of outputs; a single one has weight 1.
        keep_last: give the lowest resolution 1e-6 instead of 0: DDP without compile needs a gradient for every
            parameter.
    """
    weights = [1 / 2**level for level in range(levels)]
    if levels > 1:
        weights[-1] = 1e-6 if keep_last else 0.0
    return [weight / sum(weights) for weight in weights]


def like_nnunet(
    knowledge: Knowledge,
    loss: Any,
    levels: int | None,
    *,
    ignore_label: int | None,
    batch_dice: bool,
    margin: int,
    distributed: bool,
    keep_last: bool,
) -> SupervisedObjective:
    """Returns the supervised objective of an nnU-Net training, with its deep supervision and batch Dice.

    Args:
        knowledge: what each case says about each label.
        loss: nnU-Net's, inside of its deep supervision if there is any.
        levels: outputs of the network; None without deep supervision.
        ignore_label: nnU-Net's, if there is one.
        batch_dice: as the plans say.
        margin: of labels that are drawn in part, see :class:`SupervisedObjective`.
        distributed: whether processes have samples of their own, whose Dice statistics are gathered.
        keep_last: see :func:`deep_supervision_weights`.
    """
    if levels == 1:
        loss.weight_factors = (1.0,)  # nnU-Net's is 0 / 0: of several levels the lowest does not count

    def full_loss(outputs: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        value: Tensor = loss(outputs, target) if levels is not None else loss(outputs[0], target[0])
        return value

    return SupervisedObjective(
        knowledge,
        full_loss,
        deep_supervision_weights(levels or 1, keep_last=keep_last),
        ignore_label=ignore_label,
        batch_dice=batch_dice,
        margin=margin,
        gather=(lambda sums: AllGatherGrad.apply(sums).sum(0)) if distributed and batch_dice else None,
    )
