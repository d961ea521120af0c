"""Omni-correlation: how unlabelled voxels relate to a memory of labelled ones, on which two networks shall agree."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_mutual.losses.numerics import unit, without_autocast

NEVER = -1e30  # logarithm of no chance: finite, so that 0 * NEVER is 0


def correlation(queries: Tensor, memory: Tensor, usable: Tensor, *, temperature: float, cosine: bool = True) -> Tensor:
    r"""Logarithm of the distribution of voxels over a memory, :math:`\log \operatorname{softmax}(q R^T / T)`.

    Args:
        queries: q, (N, D).
        memory: R, (M, D).
        usable: (M,) bool, columns of the memory that are filled, at least one.
        temperature: T.
        cosine: lengths of the vectors do not count. Without it (as published) dot products saturate the softmax.

    Returns:
        (N, M) float32, below ``NEVER`` / 2 in columns that are not usable.

    Source: arXiv 2307.06312; the normalisation is [E].
    """
    q, r = queries.float(), memory.float()
    if cosine:
        q, r = unit(q, 1), unit(r, 1)
    offset = torch.zeros_like(r[:, 0]).masked_fill(~usable, NEVER)
    with without_autocast(q.device):
        return torch.addmm(offset, q / temperature, r.T).log_softmax(1)


def scale_of(reference: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    r"""What makes vectors x relative to a reference, dimension by dimension: :math:`(x - \mu) / (\sigma + 0.001)`.

    What all vectors have in common says nothing about how they relate, but makes all cosines alike; and two networks
    would agree at once if both mapped every voxel to the same vector. Relative to the reference, they cannot.

    Args:
        reference: (M, D); gets no gradient.
        usable: (M,) bool, the rows that count, at least one.

    Returns:
        Their mean and their standard deviation plus 0.001, (D,) float32.

    Source: [E], in place of the batch normalisation in the heads of arXiv 2307.06312, which other samples of a batch
        would decide.
    """
    r = reference.detach().float()
    share = usable[:, None] / usable.sum()
    mean = (r * share).sum(0)
    deviation = ((r - mean).square() * share).sum(0).sqrt()
    return mean, deviation + 1e-3


def correlation_cross_entropy(log_prediction: Tensor, log_target: Tensor, counted: Tensor) -> Tensor:
    r"""Cross-entropy of two correlation distributions, mean over the counted queries.

    Args:
        log_prediction: (N, M), as of :func:`correlation`.
        log_target: likewise, with the same usable columns; whoever wants no gradient through it detaches it.
        counted: (N,) bool.

    Returns:
        A scalar, at least the entropy of the target; 0 (with zero gradient) where no query counts.
    """
    chances = log_target.softmax(1)  # its exp, which takes a CPU ten times as long where that underflows
    each = -torch.linalg.vecdot(chances, log_prediction)
    return (each * counted).sum() / counted.sum().clamp_min(1)


def row_entropy(log_distribution: Tensor, counted: Tensor) -> Tensor:
    """Mean entropy of the counted rows as a share of the highest possible one, ln(usable columns).

    Args:
        log_distribution: (N, M), as of :func:`correlation`.
        counted: (N,) bool.

    Returns:
        A scalar from 0 (each voxel resembles one memory entry only: saturated) to 1 (all alike: dead).
    """
    usable = log_distribution[0] > NEVER / 2  # the same columns in all rows
    highest = usable.sum().clamp_min(2).log()
    return correlation_cross_entropy(log_distribution, log_distribution, counted) / highest


def most_and_any(score: Tensor, eligible: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Chooses, for each class, half of the voxels by the highest score and half at random among the eligible ones.

    Args:
        score: (K, R), 0 or more.
        eligible: (K, R) bool.
        number: of voxels per class, even, at most R.

    Returns:
        Indices (K, number) and, as not every class has enough eligible voxels, which of them count, (K, number) bool.
        A voxel may be chosen twice, once by each rule.

    Source: [E]; the published method takes the most confident only, which are easy interior voxels.
    """
    half = number // 2
    best = torch.where(eligible, score, -1.0).topk(half, 1).indices
    anyone = torch.where(eligible, torch.rand_like(score), -1.0).topk(number - half, 1).indices
    chosen = torch.cat([best, anyone], 1)
    return chosen, eligible.gather(1, chosen)
