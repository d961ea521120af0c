"""Similarity mutual learning of networks that segment the same organs: the better one's features are passed on.

Stage 2 of methods/partial. Dynamic feature similarity (DFS): for each organ, the network that segments it best at the
moment teaches the others. That features are passed dynamically is stated in the source's abstract [S]; the equation is
our reading [I]; how "best" is measured and how strongly is taught is our choice [E].
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_mutual.losses.difference import class_masks
from nnunet_mutual.losses.numerics import at_least_float32, exact_product, unit


def feature_similarity(student: Tensor, teacher: Tensor, masks: Tensor, omega: Tensor) -> Tensor:
    r"""Features of a student, turned towards those of its teacher where the taught organs are.

    .. math::
        L = \sum_a \frac{\sum_i \omega_{i,a} \sum_v m_{i,a}(v) (1 - \cos(h_i(v), \operatorname{sg}(t_i(v))))}
        {\max(1, \sum_{i: \omega_{i,a} > 0} \sum_v m_{i,a}(v))}

    where :math:`h` and :math:`t` are feature maps of student and teacher for the same images, already on common axes;
    :math:`m` the masks of the organs at their resolution and :math:`\omega` how strongly an organ is taught.

    Args:
        student: (B, F, *spatial), any floating type; computed in float32 or better.
        teacher: (B, F, *spatial), finite; gets no gradient. It may come from different networks in different samples.
        masks: (B, C, *spatial) bool, or weights from 0 to 1; a voxel of nested regions is taught once for each of them.
        omega: (B, C) weights from 0 (not taught) to 1, as of :func:`teaching_weights`; (C,) where all samples agree.

    Returns:
        A scalar between 0 and twice the number of taught classes; 0 (with zero gradient) where nothing is taught. Where
        either vector is zero the cosine is 0 and there is no gradient.

    Source: DFS is [S] in arXiv 2407.12611, this equation [I]; the mean over voxels of all samples is [E].
    Fails when: the channel axes of student and teacher do not correspond, or one teacher is better at an organ for a
        reason (resolution, contrast) that the student's images do not share.
    """
    h = at_least_float32(student.flatten(2))
    distance = 1 - (unit(h, 1) * unit(teacher.detach().flatten(2).to(h), 1)).sum(1, keepdim=True)
    weights = masks.flatten(2).to(distance)
    taught = omega.detach().to(distance).clamp_min(0)
    per_sample = exact_product(weights, distance.transpose(1, 2))[..., 0]
    voxels = (weights.sum(2) * (taught > 0)).sum(0)
    return ((taught * per_sample).sum(0) / voxels.clamp_min(1)).sum()


def teaching_weights(scores: Tensor, *, gap: float = 0.02, full: float = 0.1) -> tuple[Tensor, Tensor]:
    r"""Which network teaches a class, and how strongly each of the others learns from it.

    .. math::
        k^*_a = \operatorname{argmax}_k r_{k,a}, \quad
        \omega_{n,a} = \begin{cases} \min(1, (r_{k^*,a} - r_{n,a}) / \text{full}) & r_{n,a} < r_{k^*,a} - \text{gap} \\
        0 & \text{otherwise} \end{cases}

    where :math:`r` is the running soft Dice of a network in a class.

    Args:
        scores: (..., P, K) of P networks in K classes, NaN where never measured.
        gap: lead in Dice below which nothing is taught; 0.02 as in methods/partial.
        full: lead in Dice from which the weight is 1; 0.1 as in methods/partial.

    Returns:
        The best network of each class, (..., K) long (the first of equals; 0 where none was measured), and the weights
        (..., P, K), 0 for networks never measured and for classes in which fewer than two were.

    Source: "dynamically" is [S] in arXiv 2407.12611; by whom and how strongly is taught is [I], the numbers are [E].
    Fails when: running scores come from few voxels, so that the lead is noise.
    """
    r = scores.detach()
    measured = ~r.isnan()
    ranked = torch.where(measured, r, -torch.inf)
    lead = ranked.amax(-2, keepdim=True) - torch.nan_to_num(r)
    learns = measured & (lead > gap)  # who was measured alone is the best and has no lead over itself
    return ranked.argmax(-2), torch.where(learns, (lead / full).clamp_max(1), 0)


@torch.no_grad()
def soft_dice_per_class(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor,
    *,
    possible: Tensor | None = None,
    left_open: Tensor | None = None,
    ignore_label: int | None = None,
) -> Tensor:
    r"""Soft Dice of each annotated class in each sample, to rank networks by; no loss.

    .. math:: D_{i,b} = \frac{2 \sum_{v: y_{i,v} = b} q_{i,b}(v)}{|\{v: y_{i,v} = b\}| + \sum_v q_{i,b}(v)}

    where :math:`y` is the label map and :math:`q_b` the softmax of the logits, summed over all that the voxel may be
    where :math:`y = b`: a tumour found in a liver that was drawn with its tumours is no mistake.

    Args:
        logits: (B, C, *spatial), any floating type; computed in float32 or better. Class 0 is background.
        target: (B, 1, *spatial) integers, or ``ignore_label``.
        annotated: (B, C) bool; column 0 is not used.
        possible: (B, V, C) bool, rows for all values of the target, as of
            :func:`~nnunet_mutual.losses.partial.partial_softmax_loss`; without it, a voxel is what it is drawn as.
        left_open: (B, V, C) bool, classes that a voxel of a value may be although it is drawn otherwise: it counts for
            nothing in theirs.
        ignore_label: voxels of this value count for nothing.

    Returns:
        (B, C) without gradient; NaN for background, for classes not annotated and for those without a voxel in the
        sample.

    Source: the score of DFS, [I] in arXiv 2407.12611; NaN instead of a score for absent classes is [E].
    Fails when: patches hold a few voxels of a class; average over many.
    """
    p = at_least_float32(logits.flatten(2)).softmax(1)
    labels = target.flatten(2).long()
    ignored = None
    if ignore_label is not None:
        ignored = labels == ignore_label
        labels = labels.masked_fill(ignored, 0)
    drawn = class_masks(labels, p.shape[1])
    if possible is not None:
        allowed = possible.transpose(1, 2).gather(2, labels.expand_as(p))
        p = torch.where(drawn, torch.where(allowed, p, 0).sum(1, keepdim=True), p)
    if left_open is not None:
        p = p.masked_fill(left_open.transpose(1, 2).gather(2, labels.expand_as(p)), 0)
    dice = _soft_dice(p, drawn, annotated, ignored)
    dice[:, 0] = torch.nan
    return dice


@torch.no_grad()
def soft_dice_per_region(logits: Tensor, target: Tensor, annotated: Tensor, *, has_ignore: bool = False) -> Tensor:
    r"""Soft Dice of each annotated region in each sample: :func:`soft_dice_per_class` for sigmoid outputs.

    .. math:: D_{i,r} = \frac{2 \sum_v y_{i,r}(v) \sigma(z_{i,r}(v))}{\sum_v y_{i,r}(v) + \sum_v \sigma(z_{i,r}(v))}

    Args:
        logits: (B, R, *spatial), any floating type; computed in float32 or better.
        target: (B, R, *spatial) bool or 0/1; with ``has_ignore`` one more channel that marks ignored voxels.
        annotated: (B, R) bool.
        has_ignore: whether the last target channel is the ignore mask.

    Returns:
        (B, R) without gradient; NaN for regions not annotated and for those without a voxel in the sample.

    Source: as :func:`soft_dice_per_class`.
    Fails when: as :func:`soft_dice_per_class`.
    """
    p = at_least_float32(logits.flatten(2)).sigmoid()
    y = target.flatten(2).bool()
    ignored = y[:, p.shape[1] :] if has_ignore else None
    return _soft_dice(p, y[:, : p.shape[1]], annotated, ignored)


def _soft_dice(p: Tensor, drawn: Tensor, annotated: Tensor, ignored: Tensor | None) -> Tensor:
    if ignored is not None:
        p, drawn = p.masked_fill(ignored, 0), drawn & ~ignored
    voxels = drawn.sum(2)
    dice = 2 * torch.where(drawn, p, 0).sum(2) / (voxels + p.sum(2)).clamp_min(1)
    return torch.where(annotated & (voxels > 0), dice, torch.nan)
