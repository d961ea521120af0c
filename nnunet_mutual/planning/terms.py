"""What the terms of the losses keep for the backward pass, found by running them on tensors without data.

Each function here calls the loss that its objective calls, with inputs of the same shapes. So a change of a loss
changes the estimate with it, and no number has to be kept up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from nnunet_mutual.losses.consistency import probabilities, squared_difference
from nnunet_mutual.losses.contrast import info_nce
from nnunet_mutual.losses.difference import prediction_difference
from nnunet_mutual.losses.omni_correlation import correlation, correlation_cross_entropy
from nnunet_mutual.losses.partial import RegionRelations, partial_sigmoid_loss, partial_softmax_loss
from nnunet_mutual.losses.soft import soft_label_loss
from nnunet_mutual.objectives import correlation as of_correlation
from nnunet_mutual.objectives import rectification as of_rectification


@dataclass(frozen=True)
class Said:
    """What a network says of a batch, without data.

    Attributes:
        levels: logits (B, C, *spatial) per deep-supervision level, highest resolution first.
        unlabelled: samples, which come first.
        regions: whether outputs are regions.
        others: how many networks it learns from.
    """

    levels: Sequence[Tensor]
    unlabelled: int
    regions: bool
    others: int

    @property
    def counted(self) -> Sequence[Tensor]:
        """The levels of which nnU-Net's weight is not 0."""
        return self.levels[:-1] or self.levels


def supervised(said: Said, *, partial: bool) -> Tensor:
    """Loss of the labelled samples, over all levels."""
    labelled = [logits[said.unlabelled :] for logits in said.counted]
    return torch.stack([_supervised(logits, said.regions, partial) for logits in labelled]).sum()


def finest(logits: Tensor, *, regions: bool) -> Tensor:
    """The same at the highest resolution alone, where it is the partial form that is always used."""
    return _supervised(logits, regions, partial=True)


def _supervised(logits: Tensor, regions: bool, partial: bool) -> Tensor:
    batch, outputs, *size = logits.shape
    target = torch.zeros(batch, outputs if regions else 1, *size)
    annotated = torch.ones(batch, outputs, dtype=torch.bool)
    square = torch.ones(batch, outputs, outputs)
    if partial and regions:
        return partial_sigmoid_loss(logits, target, RegionRelations(square, square, square), annotated)
    if partial:
        return partial_softmax_loss(logits, target, square.bool(), annotated)
    options: dict[str, Any] = {"batch_dice": False, "smooth": 1e-5, "do_bg": regions, "ddp": False}
    loss: Any = DC_and_BCE_loss({}, options, dice_class=MemoryEfficientSoftDiceLoss)
    if not regions:
        loss = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    found: Tensor = loss(logits, target)
    return found


def _consistency(said: Said) -> Tensor:
    logits = said.levels[0]
    return _differences(said, logits)


def _consistency_unlabelled(said: Said) -> Tensor:
    return _differences(said, said.levels[0][: said.unlabelled])


def _differences(said: Said, logits: Tensor) -> Tensor:
    mine = probabilities(logits, regions=said.regions)
    theirs = torch.empty_like(mine, requires_grad=False)
    inside = _inside(logits)
    return torch.stack([squared_difference(mine, theirs, inside) for _ in range(said.others)]).sum()


def _soft(said: Said) -> Tensor:
    return _soft_at(said.levels[0][: said.unlabelled], said.regions)


def _soft_levels(said: Said) -> Tensor:
    return torch.stack([_soft_at(logits[: said.unlabelled], said.regions) for logits in said.counted]).sum()


def _soft_at(logits: Tensor, regions: bool) -> Tensor:
    target = torch.empty_like(logits, dtype=torch.float32, requires_grad=False)
    return soft_label_loss(logits, target, _inside(logits), regions=regions)


def _soft_label(said: Said) -> Tensor:
    logits = said.levels[0][: said.unlabelled]
    target = torch.empty_like(logits, dtype=torch.float32, requires_grad=False)
    return soft_label_loss(logits, target, _inside(logits), regions=said.regions, squared=True)


def _correlation(said: Said) -> Tensor:
    logits = said.levels[0][: said.unlabelled]
    classes = logits.shape[1] + said.regions
    wanted = int(min(of_correlation.MOST_QUERIES, logits[:, 0].numel() * of_correlation.QUERY_SHARE)) // classes
    queries = classes * max(2, wanted // 2 * 2)
    memory = classes * min(of_correlation.MEMORY_PER_CLASS, of_correlation.MOST_MEMORY // classes)
    usable = torch.ones(memory, dtype=torch.bool)
    asked = torch.empty(queries, of_correlation.SIZE, requires_grad=True)
    mine = correlation(asked, torch.empty(memory, of_correlation.SIZE), usable, temperature=1.0)
    return correlation_cross_entropy(mine, mine.detach().clone(), torch.ones(queries, dtype=torch.bool))


def _contrast(said: Said) -> Tensor:
    classes, size = said.levels[0].shape[1] + said.regions, of_rectification.SIZE
    anchors = torch.empty(classes, of_rectification.ANCHORS, size, requires_grad=True)
    negatives = torch.empty(classes, of_rectification.NEGATIVES, size)
    usable, counted = (torch.ones(x.shape[:2], dtype=torch.bool) for x in (negatives, anchors))
    return info_nce(anchors, torch.empty(classes, size), negatives, usable, counted, temperature=1.0)


def _prediction_difference(said: Said) -> Tensor:
    logits = said.levels[0]
    batch, outputs, *size = logits.shape
    if said.regions:  # keeps as much
        return finest(logits, regions=True)
    rivals = torch.ones(batch, outputs, outputs, dtype=torch.bool)
    return prediction_difference(logits, torch.zeros(batch, 1, *size), rivals)


def _inside(logits: Tensor) -> Tensor:
    return torch.ones_like(logits[:, :1], dtype=torch.bool, requires_grad=False)


TERMS: Mapping[str, Callable[[Said], Tensor]] = {
    "consistency": _consistency,
    "consistency of unlabelled": _consistency_unlabelled,
    "soft targets": _soft,
    "soft targets of all levels": _soft_levels,
    "soft labels": _soft_label,
    "correlation": _correlation,
    "contrast": _contrast,
    "prediction difference": _prediction_difference,
}
