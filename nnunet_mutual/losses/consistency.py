"""Agreement of two predictions of the same images, of which one is the target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def probabilities(logits: Tensor, *, regions: bool, temperature: float = 1.0) -> Tensor:
    r"""Softmax (labels) or sigmoid (regions) of :math:`z / T`, sharper for a temperature T below 1.

    For two classes this is :math:`p^{1/T} / (p^{1/T} + (1 - p)^{1/T})`, and normalised for any number of them.

    Args:
        logits: z, (B, C, *spatial), any floating type; computed in float32.
        regions: whether channels are regions, which are not exclusive.
        temperature: T, positive.

    Source: sharpening of arXiv 2307.06312 for two classes; this form for any number of classes is [E].
    """
    z = logits.float() / temperature
    return z.sigmoid() if regions else z.softmax(1)


def squared_difference(prediction: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    r"""Mutual consistency :math:`L_c = \operatorname{mean}_v \frac12 \sum_k (p_k(v) - q_k(v))^2` over valid voxels.

    Args:
        prediction: p, (B, C, *spatial).
        target: q, likewise; whoever wants no gradient through it detaches it.
        inside: (B, 1, *spatial) bool, valid voxels.

    Returns:
        A scalar from 0 to 1 (labels) or C / 2 (regions); 0 without valid voxels.

    Source: arXiv 2307.06312 (mean squared error of two classes, where both forms agree); [E] for more.
    """
    each = 0.5 * (prediction - target).square().sum(1, keepdim=True)
    return (each * inside).sum() / inside.sum().clamp_min(1)


def soft_cross_entropy_and_dice(
    logits: Tensor, target: Tensor, inside: Tensor, *, regions: bool, smooth: float = 1e-5
) -> Tensor:
    r"""nnU-Net's loss with probabilities q for labels: cross-entropy minus soft Dice over the batch.

    .. math::
        L = - \operatorname{mean}_v \sum_k q_k(v) \log p_k(v) - \operatorname{mean}_{k \text{ foreground}}
        \frac{2 \sum_v p_k q_k + s}{\sum_v p_k + \sum_v q_k + s}

    Args:
        logits: (B, C, *spatial), any floating type; computed in float32.
        target: q, (B, C, *spatial) probabilities without gradient.
        inside: (B, 1, *spatial) bool, voxels that count; of regions also (B, C, *spatial), where each counts.
        regions: binary cross-entropy (mean over regions) and a Dice of every channel instead.
        smooth: the smoothing term s.

    Returns:
        A scalar; -1 for equal, certain predictions.

    Source: nnU-Net's loss; with soft targets [E].
    """
    z = logits.float()
    if regions:
        entropy = F.binary_cross_entropy_with_logits(z, target, reduction="none")
        p, q = z.sigmoid(), target
    else:
        log_p = z.log_softmax(1)
        entropy = -(target * log_p).sum(1, keepdim=True)
        p, q = log_p[:, 1:].exp(), target[:, 1:]
    axes = [0, *range(2, z.ndim)]
    both, either = (p * q * inside).sum(axes), ((p + q) * inside).sum(axes)
    dice = (2 * both + smooth) / (either + smooth)
    counted = inside.expand_as(entropy)
    return (entropy * counted).sum() / counted.sum().clamp_min(1) - dice.mean()


def agreement(a: Tensor, b: Tensor, *, regions: bool) -> Tensor:
    """Where two predictions decide alike.

    Args:
        a: logits (B, C, *spatial).
        b: likewise.
        regions: whether channels are regions.

    Returns:
        (B, *spatial) bool: the same likeliest class, or the same set of regions.
    """
    if regions:
        return ((a > 0) == (b > 0)).all(1)
    return torch.eq(a.argmax(1), b.argmax(1))
