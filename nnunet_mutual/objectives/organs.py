"""What objectives of partially labelled data share: where organs are at the resolution of features, and ramps."""

from __future__ import annotations

from math import exp

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.losses.knowledge import Knowledge
from nnunet_mutual.objectives.base import Batch, Progress


def ramp(progress: Progress, start: float, end: float) -> float:
    """Returns a weight between 0 and 1: 0 until ``start``, then along a sigmoid-like curve, 1 from ``end`` on.

    Args:
        progress: where the training is.
        start: share of the training.
        end: share of the training, after ``start``.

    Source: exp(-5 (1 - x)^2) of Laine & Aila, ICLR 2017.
    """
    x = (progress.fraction - start) / (end - start)
    return 0.0 if x < 0 else exp(-5 * (1 - min(1.0, x)) ** 2)


def organ_masks(batch: Batch, knowledge: Knowledge, size: torch.Size) -> Tensor:
    """Returns where the annotated labels were drawn.

    Args:
        batch: its deep-supervision targets are used where one has the size.
        knowledge: which labels each case annotates, by true labels.
        size: spatial size.

    Returns:
        (B, C, *size) bool; the background of plain labels and unannotated labels are empty.
    """
    target = next((level for level in batch.target if level.shape[2:] == size), None)
    if target is None:
        target = F.interpolate(batch.target[0].float(), size=size, mode="nearest-exact")
    annotated = knowledge.tables.annotated[batch.pattern_index]
    annotated = annotated.view(*annotated.shape, *[1] * (target.ndim - 2))
    if knowledge.table.is_regions:
        return target[:, : annotated.shape[1]].bool() & annotated
    drawn = knowledge.tables.drawn
    labels = target.long() if drawn is None else drawn[target.long()]
    channels = torch.arange(annotated.shape[1], device=target.device)
    return (labels == channels.view(1, -1, *[1] * (target.ndim - 2))) & annotated
