"""Supervision by what each case annotates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_mutual.losses.knowledge import Knowledge
from nnunet_mutual.losses.partial import partial_sigmoid_loss, partial_softmax_loss
from nnunet_mutual.objectives.base import Batch, Objective, Progress, Term


class SupervisedObjective(Objective):
    """Tri-state cross-entropy + Dice with nnU-Net's deep supervision, summed over networks.

    A batch in which every case annotates every label goes through nnU-Net's own loss: the value is the same and so is
    the cost.

    Args:
        knowledge: what each case says about each label.
        full_loss: nnU-Net's loss of (list of logits, list of targets), for fully annotated batches.
        level_weights: weight of each deep-supervision level.
        ignore_label: nnU-Net's ignore label, if the dataset has one.
        batch_dice: as the plans say.
        gather: sums Dice statistics over processes.
    """

    term_names = ("supervised",)

    def __init__(
        self,
        knowledge: Knowledge,
        full_loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
        level_weights: Sequence[float],
        *,
        ignore_label: int | None,
        batch_dice: bool,
        gather: Callable[[Tensor], Tensor] | None = None,
    ):
        self.knowledge = knowledge
        self.full_loss = full_loss
        self.level_weights = level_weights
        self.options: dict[str, Any] = {"batch_dice": batch_dice, "gather": gather}
        self.ignore_label = ignore_label
        # Processes must take the same path, or those that gather Dice statistics would wait for the others.
        self.may_shortcut = gather is None or all(knowledge.is_full)

    def terms(self, outputs: Sequence[Sequence[Tensor]], batch: Batch, progress: Progress) -> dict[str, Term]:
        """See :meth:`Objective.terms`."""
        losses = [self.loss(levels, batch) for levels in outputs]
        return {"supervised": Term(losses[0] if len(losses) == 1 else torch.stack(losses).sum())}

    def loss(self, levels: Sequence[Tensor], batch: Batch) -> Tensor:
        """Returns the loss of one network.

        Args:
            levels: logits of each deep-supervision level.
            batch: the batch.
        """
        if self.may_shortcut and all(self.knowledge.is_full[pattern] for pattern in batch.patterns):
            return self.full_loss(levels, batch.target)
        parts = [
            weight * self._level(logits, target, batch.pattern_index)
            for weight, logits, target in zip(self.level_weights, levels, batch.target, strict=True)
            if weight > 0
        ]
        return torch.stack(parts).sum()

    def _level(self, logits: Tensor, target: Tensor, pattern: Tensor) -> Tensor:
        annotated = self.knowledge.annotated[pattern]
        if self.knowledge.relations is not None:
            relations = self.knowledge.relations[pattern]
            has_ignore = self.ignore_label is not None
            return partial_sigmoid_loss(logits, target, relations, annotated, has_ignore=has_ignore, **self.options)
        assert self.knowledge.possible is not None
        possible = self.knowledge.possible[pattern]
        return partial_softmax_loss(logits, target, possible, annotated, ignore_label=self.ignore_label, **self.options)


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
