"""Agreement of two predictions of the same images, of which one is the target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


def sharpened(p: Tensor, *, regions: bool, temperature: float) -> Tensor:
    r"""Probabilities as :func:`probabilities` gives them of a temperature T, from those of temperature 1.

    .. math:: p_k^{1/T} / \sum_j p_j^{1/T}

    Args:
        p: (B, C, *spatial).
        regions: whether channels are regions: each against its complement.
        temperature: T, positive.
    """
    if temperature == 1:
        return p
    power = p ** (1 / temperature)
    total = power + (1 - p) ** (1 / temperature) if regions else power.sum(1, keepdim=True)
    return power / total.clamp_min(torch.finfo(p.dtype).tiny)


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


def mean_of(said: Sequence[Tensor]) -> Tensor:
    """Returns the mean of several predictions; of one, itself, without a copy of its full resolution."""
    return said[0] if len(said) == 1 else torch.stack([*said]).mean(0)


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
    return torch.eq(a.max(1).indices, b.max(1).indices)  # on CPUs much faster than argmax
