"""Difference mutual learning of networks that segment different organs: what one draws, the others do not claim.

Stage 1 of methods/partial. Prediction difference (PD): a voxel drawn as an organ of another dataset is no organ of this
network. Feature difference (FD): the vectors by which networks represent different organs point different ways. That
both exist is stated in the source's abstract [S]; the equations are our reading [I], the numerics our choice [E].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.losses.numerics import at_least_float32, exact_product, unit

LOG_FLOOR = math.log(1e-6)  # the 1e-6 of -log(1 - q + 1e-6): bounds the loss of one voxel by 13.8


def prediction_difference(logits: Tensor, target: Tensor, rivals: Tensor, *, ignore_label: int | None = None) -> Tensor:
    r"""Probability of organs that cannot be where another organ is drawn, pushed down there and nowhere else.

    .. math::
        L = -\operatorname{mean}_{v \in R} \log(1 - q_v + 10^{-6}), \quad q_v = \sum_{a \in N(y_v)} p_a(v)

    where :math:`p` is the softmax of the logits; :math:`N(y)` the rivals of a drawn label y: labels that this network
    segments, that the case does not annotate and that may not overlap y; :math:`R` the voxels whose drawn label has a
    rival. :math:`1 - q_v` is the sum over the other classes, by logsumexp, so it does not cancel where q is near 1.

    Args:
        logits: (B, C, *spatial), any floating type; computed in float32 or better.
        target: (B, 1, *spatial) integers in [0, V), or ``ignore_label``.
        rivals: (B, V, C) bool; ``rivals[i, y, a]``: at a voxel of sample i drawn as y, label a cannot be. V counts
            the values of the target and may exceed C.
        ignore_label: voxels of this value are not in R.

    Returns:
        A scalar between -1e-6 and 13.8; 0 (with zero gradient) where R is empty.

    Source: PD is [S] in arXiv 2407.12611, this equation [I], its evaluation [E].
    Fails when: the data draw organs over each other without ``may_overlap`` (the loss believes that they exclude each
        other), or a rival is all but certain: from q = 1 - 1e-6 on the constant takes the gradient away.
    """
    labels = target.flatten(2).long()
    valid = None
    if ignore_label is not None:
        valid = labels != ignore_label
        labels = torch.where(valid, labels, 0)
    excluded = rivals.transpose(1, 2).gather(2, labels.expand(-1, logits.shape[1], -1))
    if valid is not None:
        excluded = excluded & valid
    log_p = F.log_softmax(at_least_float32(logits.flatten(2)), 1)
    log_rest = log_p.masked_fill(excluded, -torch.inf).logsumexp(1)
    return _mean_surprise(log_rest, excluded.any(1))


def prediction_difference_regions(
    logits: Tensor, target: Tensor, disjoint: Tensor, *, has_ignore: bool = False
) -> Tensor:
    r"""Probability of regions that share no voxel with a drawn one, pushed down inside the drawn one.

    .. math:: L = -\operatorname{mean}_{(v, a) \in R} \log(1 - \sigma(z_a(v)) + 10^{-6})

    where :math:`R` holds the pairs of a voxel and a region a (segmented by this network, not annotated in the case) for
    which some annotated region b with which a shares no voxel is present at v.

    Args:
        logits: (B, R, *spatial), any floating type; computed in float32 or better.
        target: (B, R, *spatial) bool or 0/1; with ``has_ignore`` one more channel that marks ignored voxels.
        disjoint: (B, R, R) bool or 0/1; row a, column b as above.
        has_ignore: whether the last target channel is the ignore mask.

    Returns:
        A scalar between -1e-6 and 13.8; 0 (with zero gradient) where R is empty.

    Source: PD for sigmoid outputs, [E] after arXiv 2407.12611.
    Fails when: regions declared without common integers do overlap in the images.
    """
    z = at_least_float32(logits.flatten(2))
    y = target.flatten(2).to(z)
    excluded = exact_product(disjoint.to(z), y[:, : z.shape[1]]) > 0
    if has_ignore:
        excluded = excluded & (y[:, z.shape[1] :] == 0)
    return _mean_surprise(F.logsigmoid(-z), excluded)


def organ_vectors(features: Tensor, masks: Tensor, *, minimum: float = 8.0) -> tuple[Tensor, Tensor]:
    r"""One feature vector per sample and organ: the mean over the voxels of the organ.

    .. math:: w_{i,a} = \sum_v m_{i,a}(v) h_i(v) \, / \, \sum_v m_{i,a}(v)

    where :math:`h` is a feature map and :math:`m` the masks at its resolution, which may overlap.

    Args:
        features: (B, F, *spatial), any floating type; computed in float32 or better.
        masks: (B, C, *spatial) bool, or weights from 0 to 1.
        minimum: least sum of a mask, in feature voxels; 8 as in methods/partial.

    Returns:
        Vectors (B, C, F), zero where the mask is empty, and whether they count, (B, C) bool.

    Source: masked average pooling for FD, [I] in arXiv 2407.12611; the minimum is [E].
    Fails when: labels were reduced to the resolution of the features so coarsely that thin organs vanish, or nested
        regions differ by few voxels; their vectors are then nearly the same.
    """
    h = at_least_float32(features.flatten(2))
    weights = masks.flatten(2).to(h)
    weight = weights.sum(2)
    vectors = exact_product(weights, h.transpose(1, 2)) / torch.where(weight > 0, weight, 1)[..., None]
    return vectors, (weight >= minimum) & (weight > 0)


def feature_difference(own: Tensor, others: Tensor, pairs: Tensor, *, margin: float = 0.0) -> Tensor:
    r"""Organ vectors of one network, turned away from the vectors of other organs.

    .. math:: L = \operatorname{mean}_{(q, m) \in \text{pairs}} \max(0, \cos(w_q, \operatorname{sg}(u_m)) - c)

    where :math:`w` are vectors of this network, :math:`u` those to keep away from, c is the margin and sg stops the
    gradient. Two forms of FD call it. Projected: w = P z_n(a) and u = P z_m(b), organs a and b of networks n and m
    under a shared trained projection P. Own: w = z_n(b) and u = running means of this network's vectors of its organs.

    Args:
        own: (Q, F), any floating type; computed in float32 or better.
        others: (M, F), finite; gets no gradient and is computed in the precision of ``own``.
        pairs: (Q, M) bool, which vectors are of different organs and count.
        margin: cosine up to which vectors may agree; 0 as in methods/partial.

    Returns:
        A scalar between 0 and 1 - margin; 0 (with zero gradient) where there is no pair. A zero vector has cosine 0
        with everything and gets no gradient.

    Source: FD is [S] in arXiv 2407.12611, this equation [I], both choices of vectors [E].
    Fails when: the axes of the two vectors do not correspond, as in independently trained networks without P.
    """
    own = at_least_float32(own)
    cosine = exact_product(unit(own, 1), unit(others.detach().to(own), 1).T)
    excess = (cosine - margin).relu()
    return torch.where(pairs, excess, 0).sum() / pairs.sum().clamp_min(1)


def class_masks(labels: Tensor, classes: int) -> Tensor:
    """(B, 1, *spatial) integers as (B, classes, voxels) bool; a value outside [0, classes) is in no mask."""
    return labels.flatten(2) == torch.arange(classes, device=labels.device)[:, None]


def _mean_surprise(log_rest: Tensor, where: Tensor) -> Tensor:
    """Mean of -log(exp(log_rest) + 1e-6) over the voxels of a mask of the same shape."""
    surprise = -torch.logaddexp(log_rest, log_rest.new_full((), LOG_FLOOR))
    return torch.where(where, surprise, 0).sum() / where.sum().clamp_min(1)
