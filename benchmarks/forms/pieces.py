"""Labels of which a body has one piece: what lies apart from the largest one is something else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 32  # at most, along each axis of a patch, in which pieces are told apart
STEPS, JUMPS = 5, 6  # of random masks of 32 x 32 cells, and of a snake through all of them, 4 steps find all pieces


def largest_pieces(mask: Tensor, *, border: bool = False) -> Tensor:
    """Returns the largest piece of each mask, without waiting for the device.

    Cells begin as pieces of their own. In each step a piece takes the highest number among its neighbours, which has
    taken another one, and so on: 64 numbers are followed.

    Args:
        mask: (B, K, *cells) bool.
        border: returns those that reach the border, too.

    Returns:
        (B, K, *cells) bool; cells that touch, also at a corner, are one piece.
    """
    pool = F.max_pool2d if mask.ndim == 4 else F.max_pool3d
    cells, inside = mask[0, 0].numel(), mask.flatten(2)
    numbers = torch.arange(1, cells + 1, device=mask.device) * inside  # 0 outside
    nothing = numbers.new_zeros(*mask.shape[:2], cells + 1)
    for _ in range(STEPS):
        highest = pool(numbers.view(mask.shape).float(), 3, stride=1, padding=1).flatten(2).long() * inside
        taken = nothing.scatter_reduce(2, numbers, highest, "amax")  # by the piece of a number
        for _ in range(JUMPS):
            taken = taken.gather(2, taken)
        numbers = taken.gather(2, numbers)
    counts = nothing.scatter_add(2, numbers, inside.long())
    kept = numbers == counts.argmax(2, keepdim=True)
    if border:
        reached = torch.zeros_like(mask)
        for axis in range(2, mask.ndim):
            for end in (0, -1):
                reached.select(axis, end).copy_(mask.select(axis, end))
        kept |= nothing.scatter_add(2, numbers, reached.flatten(2).long()).gather(2, numbers) > 0
    return mask & kept.view(mask.shape)


def in_one_piece(p: Tensor, *, border: bool) -> Tensor:
    """Takes labels away where they are the likeliest, but apart from their largest piece in a patch.

    Pieces nearer to each other than a cell count as one: a patch has at most 32 cells along each axis.

    Args:
        p: (B, C, *spatial) probabilities, background first, which gets what is taken away.
        border: whether a piece stays that reaches the border of the patch, beyond which it may be joined to the other.

    Source: largest components of pseudo labels, Bai et al., CVPR 2023 (arXiv 2305.00673); here on the device [E].
    """
    size = p.shape[2:]
    found = (p == p.amax(1, keepdim=True))[:, 1:]
    widths = [-(-n // CELLS) for n in size]
    pool = F.max_pool2d if p.ndim == 4 else F.max_pool3d
    kept = largest_pieces(pool(found.float(), widths, ceil_mode=True) > 0, border=border)
    for axis, (width, length) in enumerate(zip(widths, size, strict=True), 2):
        kept = kept.repeat_interleave(width, axis).narrow(axis, 0, length)
    taken = p[:, 1:] * (found & ~kept)
    return torch.cat([p[:, :1] + taken.sum(1, keepdim=True), p[:, 1:] - taken], 1)
