"""What objectives share: where organs are, what is known of a voxel, and ramps."""

from __future__ import annotations

from math import exp

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.batches.batch import Batch, by_hand
from nnunet_mutual.losses.partial import at_every_voxel
from nnunet_mutual.losses.similarity import soft_dice_per_class, soft_dice_per_region
from nnunet_mutual.objectives.base import Output, Progress
from nnunet_mutual.objectives.knowledge import Knowledge


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
    """Returns where labels were drawn, those drawn in part as well.

    Args:
        batch: its deep-supervision targets are used where one has the size.
        knowledge: which labels each case annotates, by true labels.
        size: spatial size.

    Returns:
        (B, C, *size) bool; the background of plain labels and labels that a case does not draw are empty.
    """
    tables, pattern = knowledge.tables, batch.pattern_index
    in_part = None if tables.incomplete is None else tables.incomplete[pattern]
    level = next((i for i, target in enumerate(batch.target) if target.shape[2:] == size), None)
    target = by_hand(batch.target[level or 0], None if batch.decided is None else batch.decided[level or 0], in_part)
    if level is None:
        target = F.interpolate(target.float(), size=size, mode="nearest-exact")
    drawn = tables.annotated[pattern] if in_part is None else tables.annotated[pattern] | in_part
    drawn = at_every_voxel(drawn, target)
    if knowledge.table.is_regions:
        return target[:, : drawn.shape[1]].bool() & drawn
    labels = target.long() if tables.drawn is None else tables.drawn[target.long()]
    channels = torch.arange(drawn.shape[1], device=target.device)[None]
    return (labels == at_every_voxel(channels, target)) & drawn


def drawn_dice(output: Output, batch: Batch, knowledge: Knowledge, ignore_label: int | None) -> Tensor:
    """Returns the soft Dice of a network for each label that a sample draws, at half of the resolution.

    Args:
        output: of the network.
        batch: what it saw.
        knowledge: which labels each case annotates.
        ignore_label: nnU-Net's, if there is one.

    Returns:
        (B, C), NaN where a sample does not draw a label.
    """
    level = min(1, len(output.levels) - 1)
    tables, logits, target = knowledge.tables, output.levels[level], batch.target[level]
    annotated = tables.annotated[batch.pattern_index]
    if knowledge.table.is_regions:
        return soft_dice_per_region(logits, target, annotated, has_ignore=ignore_label is not None)
    labels = target.long() if tables.drawn is None else tables.drawn[target.long()]
    rules = (None if t is None else t[batch.pattern_index] for t in (tables.possible, tables.open))
    options = dict(zip(("possible", "left_open"), rules, strict=True))
    return soft_dice_per_class(logits, labels, annotated, **options, ignore_label=ignore_label)


def moved(running: Tensor, total: Tensor, count: Tensor, momentum: float) -> Tensor:
    """Moves a running mean towards that of new values, where there are any; the first ones begin it.

    Args:
        running: NaN where there has been no value.
        total: sum of the new values.
        count: their number.
        momentum: share of the running mean that stays.
    """
    mean = total / count.clamp_min(1)
    before = torch.where(torch.isnan(running), mean, running)
    return torch.where(count > 0, momentum * before + (1 - momentum) * mean, running)


def truth_of(knowledge: Knowledge, target: Tensor, pattern: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """Returns what the labels of a sample say, and where they leave no doubt about any label.

    Args:
        knowledge: what the case annotates.
        target: some voxels of the sample's target, (1, *voxels) labels or (R[+1], *voxels) regions.
        pattern: annotation pattern of the sample, a scalar on the device.
        ignore_label: nnU-Net's, if there is one.

    Returns:
        (C, *voxels) float32, probabilities where it is known, and (*voxels) bool.
    """
    tables = knowledge.tables  # looked up by [pattern[None]]: a scalar tensor would be read on the host
    if knowledge.table.is_regions:
        number = len(knowledge.table.labels)
        known = tables.annotated[pattern[None]].all().expand(target.shape[1:])
        return target[:number].float(), known if ignore_label is None else known & ~target[number].bool()
    assert tables.possible is not None
    labels = target[0].long()
    valid = labels != (-1 if ignore_label is None else ignore_label)
    possible = tables.possible[pattern[None]][0][torch.where(valid, labels, 0)].movedim(-1, 0)
    return possible.float(), valid & (possible.sum(0) == 1)


def pasted_targets(
    said: Tensor, counted: Tensor, batch: Batch, knowledge: Knowledge, ignore_label: int | None
) -> tuple[Tensor, Tensor]:
    """Returns what the student's unlabelled images show, after boxes of other samples were pasted into them.

    Args:
        said: (unlabelled, C, *spatial) what a teacher says about these images as they were.
        counted: (unlabelled, 1 or C, *spatial) how much that counts; what a label says counts as 1 (True).
        batch: with views.
        knowledge: what the labelled samples annotate.
        ignore_label: nnU-Net's, if there is one.
    """
    views = batch.views
    assert views is not None
    target, weight = said.clone(), counted.clone()
    for paste in views.pasted:
        if paste.origin < views.unlabelled:
            shown, counts = paste.taken(said), paste.taken(counted)
        else:
            drawn, pattern = paste.taken(batch.target[0]), batch.pattern_index[paste.origin]
            shown, known = truth_of(knowledge, drawn, pattern, ignore_label)
            counts = paste.taken(views.inside) & known
        paste.put(shown, target)
        paste.put(counts, weight)
    return target, weight
