"""What a network says about an image, averaged over views of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnunet_mutual.losses.consistency import probabilities

NOISE = 0.1  # standard deviation, of images that nnU-Net has normalised


def over_views(
    ask: Callable[[Tensor], Tensor], images: Tensor, *, axes: Sequence[int], passes: int, regions: bool
) -> Tensor:
    """Returns probabilities (B, C, *spatial), averaged over images as they are and mirrored, noised views of them.

    Args:
        ask: returns the logits (B, C, *spatial) of images.
        images: (B, M, *spatial), as the network sees them; what is 0 gets no noise.
        axes: spatial axes that may be mirrored, one after the other.
        passes: number of views, 1 for the images alone.
        regions: whether outputs are regions.
    """
    total = probabilities(ask(images), regions=regions)
    dims = [2 + axis for axis in axes]
    for n in range(1, passes):
        flipped = [dims[(n - 1) % len(dims)]] if dims else []
        noised = images + NOISE * torch.randn_like(images) * (images != 0)
        total = total + probabilities(ask(noised.flip(flipped)), regions=regions).flip(flipped)
    return total / passes
