"""Losses with soft labels, whose best prediction is the label itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.losses.numerics import at_least_float32


def squared_dice(p: Tensor, q: Tensor, inside: Tensor | None = None, smooth: float = 1e-5) -> Tensor:
    r"""Dice with squared denominators, :math:`(2 \sum p q + e) / (\sum p^2 + \sum q^2 + e)`, over the batch.

    For a soft label q it is highest at p = q; nnU-Net's Dice is highest at certainty, which hardens soft labels.

    Args:
        p: (B, C, *spatial) probabilities.
        q: likewise.
        inside: (B, 1 or C, *spatial) bool, voxels that count; all without it.
        smooth: e.

    Returns:
        (C,) from 0 to 1; 1 where both are empty.

    Source: Zhang et al., Med. Image Anal. 83, 102656.
    """
    p, q = at_least_float32(p), at_least_float32(q)
    if inside is not None:
        p, q = p * inside, q * inside
    axes = [0, *range(2, p.ndim)]
    both = (p * q).sum(axes)
    return (2 * both + smooth) / (p.square().sum(axes) + q.square().sum(axes) + smooth)


def soft_label_loss(logits: Tensor, target: Tensor, inside: Tensor, *, regions: bool) -> Tensor:
    r"""Cross-entropy with soft labels minus squared Dice of the foreground, on nnU-Net's scale.

    .. math:: L = - \operatorname{mean}_v \sum_k q_k \log p_k - \operatorname{mean}_{k \text{ foreground}} D_k(p, q)

    Args:
        logits: (B, C, *spatial).
        target: q, likewise, probabilities without gradient.
        inside: (B, 1, *spatial) bool, voxels that count; of regions also (B, C, *spatial), where each counts.
        regions: binary cross-entropy (mean over regions), every channel is foreground.

    Returns:
        A scalar; for certain, equal predictions -1.

    Source: Zhang et al., Med. Image Anal. 83, 102656 (there 10 BCE + 7 (1 - Dice)); nnU-Net's weights [E].
    """
    z, q = at_least_float32(logits), at_least_float32(target)
    if regions:
        entropy = F.binary_cross_entropy_with_logits(z, q, reduction="none")
        dice = squared_dice(z.sigmoid(), q, inside)
    else:
        log_p = z.log_softmax(1)
        entropy = -(q * log_p).sum(1, keepdim=True)
        dice = squared_dice(log_p[:, 1:].exp(), q[:, 1:], inside)
    counted = inside.expand_as(entropy)
    return (entropy * counted).sum() / counted.sum().clamp_min(1) - dice.mean()
