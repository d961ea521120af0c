"""Supervision by partially annotated cases: cross-entropy and soft Dice that never punish what nobody looked for.

A voxel of a partially annotated case has one of three states for each label: it is that label, it is not, or nobody
knows. nnU-Net's ignore label is per voxel; this is per voxel *and* label. Which states hold is read from small look-up
tables (:mod:`nnunet_mutual.objectives.knowledge`), so nothing of the size of an image is prepared in the loader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Gather = Callable[[Tensor], Tensor]
Mix = Callable[[Tensor], Tensor]  # of what is known of the voxels of a batch, (B, C, *spatial)


def set_log_probability(logits: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logarithm of the probability that a voxel belongs to its set of possible classes.

    .. math:: \log p(S) = \log \sum_{k \in S(v)} p_k(v)

    where :math:`p` is the softmax of the logits and :math:`S(v)` the classes that voxel v may have.

    Args:
        logits: (B, C, *spatial), any floating type; computed in float32.
        allowed: (B, C, *spatial) bool, at least one class per voxel.

    Returns:
        log p(S) as (B, *spatial) and log p as (B, C, *spatial).

    Source: marginal loss, [I] in arXiv 2407.12611; the sum of probabilities over merged classes follows Shi et al.,
        Med. Image Anal. 70, 101979 (2021).
    Fails when: a voxel allows no class (the result is -inf).
    """
    log_p = F.log_softmax(logits.float(), 1)
    return log_p.masked_fill(~allowed, -torch.inf).logsumexp(1), log_p


def beside(drawn: Tensor, margin: int) -> Tensor:
    """Returns the voxels that are next to what is drawn and not drawn themselves: bool, shaped like ``drawn``.

    A part that was drawn ends where it was drawn to end, so a label that is drawn in part is absent there; in the
    plane of a slice alone, since the next slice may be one that nobody looked at.

    Args:
        drawn: (B, C, *spatial) bool.
        margin: voxels, along the last two axes.
    """
    size = [1] * (drawn.ndim - 4) + [2 * margin + 1] * 2
    pool = F.max_pool2d if drawn.ndim == 4 else F.max_pool3d
    near = pool(drawn.float(), size, stride=1, padding=[length // 2 for length in size])
    return near.bool() & ~drawn


def at_every_voxel(values: Tensor, like: Tensor) -> Tensor:
    """Returns values of each sample and class, (B, C), so that they broadcast over ``like``, (B, any, *spatial)."""
    return values.view(*values.shape, *[1] * (like.ndim - 2))


def allowed_classes(
    labels: Tensor,
    possible: Tensor,
    *,
    incomplete: Tensor | None = None,
    margin: int = 0,
    drawn: Tensor | None = None,
    by_hand: Tensor | None = None,
) -> Tensor:
    """Returns S(v), the classes that voxels may have: (B, C, *spatial) bool.

    Args:
        labels: (B, 1, *spatial) integers below V, the ignore label replaced.
        possible: (B, V, C) bool, see :func:`partial_softmax_loss`; and for the others.
        incomplete: labels that are drawn in part.
        margin: around what somebody drew of them.
        drawn: class of each value.
        by_hand: the class that somebody drew, where ``drawn`` is what was decided.
    """
    flat = labels.flatten(2).long()
    allowed = possible.transpose(1, 2).gather(2, flat.expand(-1, possible.shape[2], -1))
    allowed = allowed.view(len(labels), -1, *labels.shape[2:])
    if incomplete is None or not margin:
        return allowed
    classes = torch.arange(possible.shape[2], device=labels.device)[None]
    own = at_every_voxel(classes, labels) == (labels if drawn is None else drawn[labels])
    outlined = own if by_hand is None else at_every_voxel(classes, labels) == by_hand[labels]
    return allowed & ~(beside(outlined & at_every_voxel(incomplete, labels), margin) & ~own)


def partial_softmax_loss(
    logits: Tensor,
    target: Tensor,
    possible: Tensor,
    annotated: Tensor,
    *,
    incomplete: Tensor | None = None,
    margin: int = 0,
    ignore_label: int | None = None,
    drawn: Tensor | None = None,
    by_hand: Tensor | None = None,
    leaves_open: bool = False,
    weights: Tensor | None = None,
    mix: Mix | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    gather: Gather | None = None,
) -> Tensor:
    r"""Marginal cross-entropy plus soft Dice over the annotated labels.

    .. math::
        L = -\operatorname{mean}_v \log \sum_{k \in S(v)} p_k(v) \; - \; \operatorname{mean}_{b \in A}
        \frac{2 \sum_{v: y_v = b} q_b(v) + s}{|\{v: y_v = b\}| + \sum_v q_b(v) + s}

    where :math:`y` is the label map, 0 meaning "none of A"; :math:`A` the annotated labels; :math:`S(v)` the possible
    classes of a voxel; :math:`q_b(v)` is :math:`p(S(v))` where :math:`y_v = b` and :math:`p_b(v)` elsewhere; s the
    smoothing term. Means run over voxels of cases that draw anything, and over annotated labels only: nnU-Net's Dice
    would count a masked label as a perfect score. With everything annotated this is nnU-Net's cross-entropy and Dice.
    With ``weights``, the logarithm of each voxel counts :math:`w_{y_v}` times and the Dice of each label :math:`w_b`
    times, divided by as many voxels and labels as without.

    Args:
        logits: (B, C, *spatial), class 0 is background.
        target: (B, 1, *spatial) integers below V, or ``ignore_label``.
        possible: (B, V, C) bool; ``possible[i, y, k]``: may a voxel of sample i with value y be of class k?
        annotated: (B, C) bool; column 0 is not used.
        incomplete: (B, C) bool, labels that are drawn in part: in the cross-entropy alone, of which every voxel of the
            case is then a part, so that a drawn one weighs as much as where all is drawn. None for none.
        margin: voxels around what is drawn of such a label where it is taken as absent, see :func:`beside`.
        ignore_label: voxels of this value count for nothing.
        drawn: (V,) class of each value; None where the values are classes (V = C).
        by_hand: (V,) the class that somebody drew, where ``drawn`` is what was decided.
        leaves_open: whether a value may leave open if a voxel belongs to an annotated label; with ``drawn`` it always
            may. Such a voxel does not count in the Dice of that label.
        weights: (B, C) how much each class counts where it is drawn or decided; None: all of them 1.
        mix: mixes the samples as the images were mixed of which the logits are: the pattern is one of the voxel then,
            and Dice of a label is over the voxels that annotate it.
        batch_dice: one Dice over all samples instead of one per sample, as the plans say.
        smooth: the smoothing term s of the Dice, nnU-Net's 1e-5.
        gather: sums Dice statistics over processes (batch Dice under DDP).

    Returns:
        A scalar; 0 (with zero gradient) where no sample annotates anything.

    Source: tri-state supervision [E] after arXiv 2407.12611; Dice as in nnU-Net.
    Fails when: sources disagree about where an organ ends; the loss believes each of them.
    """
    labels = target.long()
    asked = at_every_voxel(annotated, target)
    speaks = asked if incomplete is None else asked | at_every_voxel(incomplete, target)
    valid = torch.ones_like(labels, dtype=torch.bool) if ignore_label is None else labels != ignore_label
    labels = torch.where(valid, labels, 0)
    allowed = allowed_classes(labels, possible, incomplete=incomplete, margin=margin, drawn=drawn, by_hand=by_hand)
    if mix is not None:
        asked, speaks = (mix(part.expand(-1, -1, *labels.shape[2:])) for part in (asked, speaks))
        if weights is not None:
            weights = mix(at_every_voxel(weights, target).expand_as(asked))
        labels, valid, allowed = mix(labels), mix(valid), mix(allowed)
        annotated = asked.flatten(2).any(2)
    labels, valid, allowed, asked, speaks = (part.flatten(2) for part in (labels, valid, allowed, asked, speaks))
    counted = speaks[:, 1:].any(1) & valid[:, 0]
    log_set, log_p = set_log_probability(logits.flatten(2), allowed)
    values = labels if drawn is None else drawn[labels]
    worth = counted if weights is None else counted * _at_voxels(weights, values)
    cross_entropy = -(log_set * worth).sum() / counted.sum().clamp_min(1)

    positive = torch.zeros_like(log_p, dtype=torch.bool).scatter_(1, values, True)[:, 1:]
    # q_b at voxels drawn as b is the probability of the whole set, elsewhere of b alone.
    q = torch.where(positive, log_set[:, None], log_p[:, 1:]).exp()
    if ignore_label is not None:
        q = q * valid  # ignored voxels are drawn as background by now
    if drawn is not None or leaves_open:
        q = q.masked_fill(allowed[:, 1:] & ~positive, 0)
    if mix is not None:
        q, positive = q * asked[:, 1:], positive & asked[:, 1:]
    sums = (q * positive).sum(2), q.sum(2), positive.sum(2, dtype=q.dtype)
    weights = None if weights is None else of_labels(weights, asked)[:, 1:]
    dice = supervised_dice(*sums, annotated[:, 1:], batch_dice, smooth, gather, weights)
    return cross_entropy - dice


def _at_voxels(weights: Tensor, values: Tensor) -> Tensor:
    """Weight of the class of each voxel, (B, voxels).

    Args:
        weights: (B, C) or, mixed, (B, C, *spatial).
        values: (B, 1, voxels) classes.
    """
    return weights.flatten(2).gather(1, values)[:, 0] if weights.ndim > 2 else weights.gather(1, values[:, 0])


def of_labels(weights: Tensor, asked: Tensor) -> Tensor:
    """Weight of each label, (B, C): where samples are mixed, its mean over the voxels that annotate it.

    Args:
        weights: (B, C) or, mixed, (B, C, *spatial).
        asked: (B, C, voxels) bool.
    """
    if weights.ndim == 2:
        return weights
    return (weights.flatten(2) * asked).sum(2) / asked.sum(2).clamp_min(1)


def known_regions(
    target: Tensor,
    known_by: RegionRelations,
    annotated: Tensor,
    *,
    incomplete: Tensor | None = None,
    margin: int = 0,
    has_ignore: bool = False,
    decided: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns where each region is known, 0 or 1, and what it is there, both (B, R, *spatial) float32.

    Args:
        target: see :func:`partial_sigmoid_loss`, and for the others.
        known_by: relations.
        annotated: regions.
        incomplete: regions that are drawn in part.
        margin: around what somebody drew of them.
        has_ignore: whether there is an ignore mask.
        decided: where a pseudo label is known.
    """
    regions = annotated.shape[1]
    y = target[:, :regions].flatten(2).float()
    valid = 1 - target[:, regions:].flatten(2).float() if has_ignore else torch.ones_like(y[:, :1])
    absent = (known_by.absent_if_present - known_by.absent_if_absent) @ y + known_by.absent_if_absent.sum(
        2, keepdim=True
    ) > 0
    present = known_by.present_if_present @ y > 0
    drawn = annotated[:, :, None] if decided is None else annotated[:, :, None] & decided.flatten(2)
    known = (drawn | (absent ^ present)) * valid
    truth = torch.where(drawn, y, present.to(y))
    shape = (len(target), regions, *target.shape[2:])
    known, truth = known.view(shape), truth.view(shape)
    if incomplete is None or not margin:
        return known, truth
    in_part = target[:, :regions].bool() & at_every_voxel(incomplete, target)
    if decided is not None:
        in_part = in_part & ~decided.bool()
    near = beside(in_part, margin) & ~known.bool() & valid.view(len(target), -1, *target.shape[2:]).bool()
    return known + near, truth * ~near


def partial_sigmoid_loss(
    logits: Tensor,
    target: Tensor,
    known_by: RegionRelations,
    annotated: Tensor,
    *,
    incomplete: Tensor | None = None,
    margin: int = 0,
    has_ignore: bool = False,
    decided: Tensor | None = None,
    weights: Tensor | None = None,
    mix: Mix | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    gather: Gather | None = None,
) -> Tensor:
    r"""Binary cross-entropy over known voxels and regions plus soft Dice over the annotated regions.

    .. math::
        L = \operatorname{mean}_{(v, r) \text{ known}} \operatorname{BCE}(z_r(v), y_r(v)) -
        \operatorname{mean}_{r \in A} \frac{2 \sum_v \sigma(z_r) y_r + s}{\sum_v y_r + \sum_v \sigma(z_r) + s}

    where an unannotated region is known at a voxel if an annotated one decides it: a part of a region that is absent
    there is absent, a region whose part is present is present, disjoint regions exclude each other. A region that is
    drawn in part is present where it is drawn, and says nothing elsewhere.

    Args:
        logits: (B, R, *spatial).
        target: (B, R, *spatial) bool or 0/1; with ``has_ignore`` one more channel that marks ignored voxels.
        known_by: relations between regions, (B, R, R) each.
        annotated: (B, R) bool.
        incomplete: (B, R) bool, regions that are drawn in part, of which every voxel is a part of the mean; see
            :func:`partial_softmax_loss`.
        margin: as in :func:`partial_softmax_loss`.
        has_ignore: whether the last target channel is the ignore mask.
        decided: (B, R, *spatial) bool: where the target of a region that nobody drew is a pseudo label, to be learnt
            like a drawn one; such regions are among ``annotated``. Elsewhere they count where drawn ones decide.
        weights: (B, R) how much the terms of each region count, divided by as many as without; None: all of them 1.
        mix: as in :func:`partial_softmax_loss`.
        batch_dice: as in :func:`partial_softmax_loss`.
        smooth: as in :func:`partial_softmax_loss`.
        gather: as in :func:`partial_softmax_loss`.

    Returns:
        A scalar; 0 where nothing is known. Under an ignore label nnU-Net sums its BCE over regions instead of
        averaging; so does this one.

    Source: tri-state supervision for regions [E], methods after arXiv 2407.12611.
    Fails when: annotated regions contradict each other at a voxel; such a voxel counts as unknown for the others.
    """
    regions = logits.shape[1]
    options: dict[str, Any] = {"has_ignore": has_ignore, "decided": decided}
    known, truth = known_regions(target, known_by, annotated, incomplete=incomplete, margin=margin, **options)
    counted = known
    if incomplete is not None:
        valid = ~target[:, regions:].bool() if has_ignore else torch.ones_like(known[:, :1], dtype=torch.bool)
        in_part = at_every_voxel(incomplete, target) & valid
        counted = torch.maximum(known, in_part.to(known))
    if mix is not None:
        asked = mix(at_every_voxel(annotated, target).expand_as(known))
        if weights is not None:
            weights = mix(at_every_voxel(weights, target).expand_as(known))
        known, truth, counted = mix(known), mix(truth), mix(counted)
        annotated = asked.flatten(2).any(2)
    logits, known, truth = logits.flatten(2).float(), known.flatten(2), truth.flatten(2)

    worth = known if weights is None else known * weights.view(len(weights), regions, -1)
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * worth
    bce = bce.sum() / counted.sum().clamp_min(1)
    p = logits.sigmoid() * known  # of annotated regions; of pseudo labels, where they are decided or follow from others
    y = truth * known
    weights = weights if weights is None or mix is None else of_labels(weights, asked.flatten(2))
    dice = supervised_dice((p * y).sum(2), p.sum(2), y.sum(2), annotated, batch_dice, smooth, gather, weights)
    return bce * (regions if has_ignore else 1) - dice


class RegionRelations:
    """What annotated regions say about the others: three (..., R, R), row = region asked about, column = annotated."""

    def __init__(self, absent_if_present: Tensor, absent_if_absent: Tensor, present_if_present: Tensor):
        self.absent_if_present = absent_if_present
        self.absent_if_absent = absent_if_absent
        self.present_if_present = present_if_present

    def __getitem__(self, index: Tensor) -> RegionRelations:
        return RegionRelations(
            self.absent_if_present[index], self.absent_if_absent[index], self.present_if_present[index]
        )

    def where(self, included: Tensor) -> RegionRelations:
        """Forgets what samples say that are not included, (B, 1) bool."""
        kept = included[:, :, None]
        return RegionRelations(
            self.absent_if_present * kept, self.absent_if_absent * kept, self.present_if_present * kept
        )

    def to(self, device: torch.device) -> RegionRelations:
        return RegionRelations(
            self.absent_if_present.to(device), self.absent_if_absent.to(device), self.present_if_present.to(device)
        )


def supervised_dice(
    intersection: Tensor,
    predicted: Tensor,
    reference: Tensor,
    annotated: Tensor,
    batch_dice: bool,
    smooth: float,
    gather: Gather | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean soft Dice over annotated labels only.

    Args:
        intersection: (B, K) sums over voxels, float32.
        predicted: (B, K).
        reference: (B, K).
        annotated: (B, K) bool.
        batch_dice: sum over samples first.
        smooth: smoothing term.
        gather: sums over processes; used with ``batch_dice`` only.
        weights: (B, K) by which the Dice of each label is multiplied before the mean, with ``batch_dice`` by their mean
            over the samples that annotate it; None: 1.

    Returns:
        A scalar between 0 and 1; 0 if nothing is annotated.
    """
    asked = annotated.to(intersection)
    if batch_dice:
        counts = [asked.sum(0)] if weights is None else [asked.sum(0), (asked * weights).sum(0)]
        sums = torch.stack([(part * asked).sum(0) for part in (intersection, predicted, reference)] + counts)
        intersection, predicted, reference, count, *weighted = gather(sums) if gather is not None else sums
        asked = (count > 0).to(intersection)
        weights = weighted[0] / count.clamp_min(1) if weighted else None
    dice = (2 * intersection + smooth) / (reference + predicted + smooth).clamp_min(1e-8)
    dice = dice if weights is None else dice * weights
    return (dice * asked).sum() / asked.sum().clamp_min(1)
