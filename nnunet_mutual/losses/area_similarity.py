"""Area-similarity contrast (ASC): what two networks say of one organ overlaps, more than what is said of others.

A *unit* is the probability map of one foreground class in one sample; background is none, it would overlap everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_mutual.losses.numerics import at_least_float32, exact_product


@dataclass(frozen=True)
class Contrast:
    """Which forms of the contrast are used.

    Attributes:
        least_mass: mean probability below which a unit is empty and says nothing; 0: every unit counts.
        alike: similarity of the consensus above which two samples are no opposites; above 1: never.
        positive: weight of the term that asks for agreement alone.
        smooth: e of the similarity.

    ``ROBUST`` is the default. ``PUBLISHED`` is the paper's: with empty crops it rewards inventing foreground, and it
    pushes apart organs that lie at similar places in every crop.
    """

    least_mass: float
    alike: float
    positive: float
    smooth: float = 1e-5


ROBUST = Contrast(least_mass=1e-4, alike=0.3, positive=1.0)
PUBLISHED = Contrast(least_mass=0.0, alike=2.0, positive=0.0)


def area_similarity(a: Tensor, b: Tensor, smooth: float = 1e-5) -> Tensor:
    r"""Similarity of probability maps, :math:`s_{ij} = (2 <a_i, b_j> + e) / (|a_i|^2 + |b_j|^2 + e)`.

    Args:
        a: (..., N, V) maps of V voxels.
        b: (..., M, V).
        smooth: e; two empty maps have similarity 1.

    Returns:
        (..., N, M), from 0 to 1 for probabilities.

    Source: Zhang et al., Med. Image Anal. 83, 102656.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    squares = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return (2 * exact_product(a, b.transpose(-1, -2)) + smooth) / (squares + smooth)


def area_similarity_contrast(
    first: Tensor,
    second: Tensor,
    present: Tensor,
    queue: Tensor | None = None,
    filled: Tensor | None = None,
    *,
    form: Contrast = ROBUST,
) -> tuple[Tensor, Tensor]:
    r"""Contrast of two networks' maps of the same samples, mean over the units that count.

    .. math::
        L = \operatorname{mean}_i \Big[ -s_{i i'} + \log \Big( e^{s_{i i'}} + \sum_{j \in N(i)} e^{s_{i j}} \Big)
        + w (1 - s_{i i'}) \Big]

    where i runs over the units of both networks; :math:`i'` is the same sample and class of the other network; N(i) are
    the units of the class in other samples, of both networks, and those of the queue.

    Args:
        first: (B, K, V) probabilities of K foreground classes or regions, at any resolution.
        second: likewise, of the other network. Whoever has no gradient to give is detached by the caller; the value is
            the same, so each network alone gets its part of the joint gradient.
        present: (B,) bool, samples that both networks can see.
        queue: (K, Q, V) maps of earlier samples, without gradient.
        filled: (K, Q) bool, which of them there are.
        form: ``ROBUST`` or ``PUBLISHED``.

    Returns:
        The loss, 0 where no unit counts, and the number of units that had an opposite, as tensors: without any there
        is no contrast, only agreement. At chance level a unit's contrast is ln(1 + |N(i)|).

    Source: Zhang et al., Med. Image Anal. 83, 102656. Mass gate, opposites by consensus, the positive term and the
        queue are [E].
    Fails when: the two images of a sample are not registered.
    """
    batch = len(first)
    z = at_least_float32(torch.cat([first, second])).transpose(0, 1)  # (K, 2B, V)
    classes = len(z)
    samples = torch.arange(batch, device=z.device).repeat(2)
    heavy = (z.detach().mean(2) >= form.least_mass) & present[samples]
    counted = heavy & heavy.roll(batch, 1)  # both networks see something
    s = area_similarity(z, z, form.smooth)
    positive = s.diagonal(batch, 1, 2)
    positive = torch.cat([positive, positive], 1)  # (K, 2B)
    consensus = (z[:, :batch] + z[:, batch:]).detach() / 2
    alike = area_similarity(consensus, consensus, form.smooth) > form.alike
    opposite = (samples[:, None] != samples) & counted[:, None] & ~alike.repeat(1, 2, 2)
    columns, allowed = s, opposite.expand(classes, -1, -1)
    if queue is not None and filled is not None:
        old = area_similarity(z, queue, form.smooth)
        unlike = area_similarity(consensus, queue, form.smooth) <= form.alike
        columns = torch.cat([columns, old], 2)
        allowed = torch.cat([allowed, unlike.repeat(1, 2, 1) & filled[:, None]], 2)
    negatives = columns.masked_fill(~allowed, -torch.inf)
    each = torch.cat([positive[..., None], negatives], 2).logsumexp(2) - positive + form.positive * (1 - positive)
    active = (allowed.any(2) & counted).sum()
    return (each * counted).sum() / counted.sum().clamp_min(1), active
