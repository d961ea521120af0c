"""Contrast of sampled voxels: like their class, unlike others."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_mutual.losses.numerics import at_least_float32, exact_product, unit


def info_nce(
    anchors: Tensor, positives: Tensor, negatives: Tensor, usable: Tensor, counted: Tensor, *, temperature: float
) -> Tensor:
    r"""InfoNCE on cosines, mean over the counted anchors.

    .. math:: L = -\log \frac{e^{\cos(a, p) / T}}{e^{\cos(a, p) / T} + \sum_n e^{\cos(a, n) / T}}

    Args:
        anchors: a, (K, A, D) of each class.
        positives: p, (K, D).
        negatives: n, (K, N, D), shared by the anchors of a class.
        usable: (K, N) bool, which negatives there are.
        counted: (K, A) bool, which anchors there are.
        temperature: T.

    Returns:
        A scalar, 0 or more; 0 (with zero gradient) where no anchor counts.

    Source: arXiv 2502.11456 with T = 0.5 and 512 negatives of each anchor; shared by a class [E].
    """
    a = unit(at_least_float32(anchors), -1)
    p, n = (unit(x.detach().to(a), -1) for x in (positives, negatives))
    like = (a * p[:, None]).sum(2) / temperature
    unlike = (exact_product(a, n.transpose(1, 2)) / temperature).masked_fill(~usable[:, None], -torch.inf)
    each = torch.cat([like[..., None], unlike], 2).logsumexp(2) - like
    return (each * counted).sum() / counted.sum().clamp_min(1)


def softened_positives(means: Tensor, centroids: Tensor, filled: Tensor, xi: Tensor | float) -> Tensor:
    r"""Positives that are no single voxel's: :math:`p_k = \operatorname{unit}(r_k + \xi \bar c_k)`.

    Args:
        means: r, (K, D) mean embedding of each class in the batch.
        centroids: (K, R, D) of labelled voxels; their mean is c.
        filled: (K,) bool, of which classes centroids are known.
        xi: how much they count, published as drawn from [0, 1].

    Returns:
        (K, D) of length 1.

    Source: arXiv 2502.11456; centroids in the space of the embeddings instead of prototypes of another one [E].
    """
    return unit(unit(means.float(), 1) + xi * centroids.float().mean(1) * filled[:, None], 1)


def draw_negatives(means: Tensor, present: Tensor, pool: int, number: int, *, temperature: float) -> Tensor:
    """Draws, for each class, other classes in proportion to how alike they look, and one of their voxels each.

    Args:
        means: (K, D) mean embedding of each class in the batch.
        present: (K,) bool, classes that are in the batch.
        pool: voxels of each class to choose from.
        number: of negatives of each class.
        temperature: of the softmax over cosines.

    Returns:
        (K, number) indices into the flattened (K, pool); of no use where a class has no other class beside it.
    """
    r = unit(means.float(), 1)
    classes = len(r)
    other = present[None] & ~torch.eye(classes, dtype=torch.bool, device=r.device)
    chance = (exact_product(r, r.T) / temperature).masked_fill(~other, -torch.inf).softmax(1)
    chosen = torch.multinomial(torch.nan_to_num(chance) + 1e-12, number, replacement=True)
    return chosen * pool + torch.randint(pool, chosen.shape, device=r.device)
