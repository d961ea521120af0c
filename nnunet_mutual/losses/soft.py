"""Losses with probabilities for labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.losses.numerics import at_least_float32


def soft_dice(
    p: Tensor, q: Tensor, inside: Tensor, *, squared: bool, per_sample: bool = False, smooth: float = 1e-5
) -> Tensor:
    r"""Dice :math:`(2 \sum p q + s) / (\sum p^e + \sum q^e + s)` over the batch, with e = 2 (squared) or 1 (nnU-Net's).

    For a soft label q, the squared form is highest at p = q, nnU-Net's at certainty: it hardens soft labels.

    Args:
        p: (B, C, *spatial) probabilities.
        q: likewise.
        inside: (B, 1 or C, *spatial) bool, voxels that count.
        squared: whether denominators are.
        per_sample: over each sample instead.
        smooth: s.

    Returns:
        (C,) or, of each sample, (B, C) from 0 to 1; 1 where both are empty.

    Source: nnU-Net's Dice; squared, Zhang et al., Med. Image Anal. 83, 102656.
    """
    axes = [*([] if per_sample else [0]), *range(2, p.ndim)]
    size = p.square() + q.square() if squared else p + q
    return (2 * (p * q * inside).sum(axes) + smooth) / ((size * inside).sum(axes) + smooth)


def soft_label_loss(
    logits: Tensor,
    target: Tensor,
    inside: Tensor,
    *,
    regions: bool,
    squared: bool = False,
    present: Tensor | None = None,
) -> Tensor:
    r"""nnU-Net's loss with probabilities q for labels: cross-entropy minus the mean Dice of the foreground.

    .. math:: L = - \operatorname{mean}_v \sum_k q_k \log p_k - \operatorname{mean}_{k \text{ foreground}} D_k(p, q)

    Args:
        logits: (B, C, *spatial), any floating type; computed at least in float32.
        target: q, likewise, probabilities without gradient.
        inside: (B, 1, *spatial) bool, voxels that count, or how much; of regions also (B, C, *spatial), where each one
            counts.
        regions: binary cross-entropy (mean over regions) and a Dice of every channel instead.
        squared: of :func:`soft_dice`: whether the best answer is q itself rather than the certain one next to it.
        present: (B, C) bool, labels with a Dice of their own in each sample, of which the mean is taken; None for one
            Dice of every label over the batch. Without it, a label of which there is no voxel in a sample asks for
            certainty about its faintest trace.

    Returns:
        A scalar; -1 for equal, certain predictions.

    Source: nnU-Net's loss, with soft targets [E]; squared, Zhang et al., Med. Image Anal. 83, 102656 (there 10 BCE +
        7 (1 - Dice)), with nnU-Net's weights [E].
    """
    z, q = at_least_float32(logits), at_least_float32(target)
    first = 0 if regions else 1
    if regions:
        entropy = F.binary_cross_entropy_with_logits(z, q, reduction="none")
        p = z.sigmoid()
    else:
        log_p = z.log_softmax(1)
        entropy = -(q * log_p).sum(1, keepdim=True)
        p = log_p[:, first:].exp()
    counted = inside.expand_as(entropy)
    loss = (entropy * counted).sum() / counted.sum().clamp_min(1)
    dice = soft_dice(p, q[:, first:], inside, squared=squared, per_sample=present is not None)
    if present is None:
        return loss - dice.mean()
    chosen = present[:, first:]
    return loss - (dice * chosen).sum() / chosen.sum().clamp_min(1)
