"""Voxels chosen by tensor operations of fixed shape, so that a step never waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

# A share of all voxels, so that small patches stay cheap.
POOL_SHARE, LEAST_POOL, MOST_POOL = 1 / 8, 2**12, 2**16


def spread(voxels: int, device: torch.device) -> Tensor:
    """Returns different places of [0, voxels), spread evenly with a random shift each, (R,) long."""
    number = min(voxels, MOST_POOL, max(LEAST_POOL, int(voxels * POOL_SHARE)))
    width = voxels // number
    places = torch.arange(number, device=device) * width + torch.randint(width, (number,), device=device)
    # Where the width leaves voxels over, they would be at the end, and never drawn.
    return (places + torch.randint(voxels, (1,), device=device)) % voxels if voxels % number else places


def any_of(eligible: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Draws different voxels of each class among the eligible ones.

    Args:
        eligible: (K, R) bool.
        number: of voxels per class, at most R.

    Returns:
        Indices (K, number) and, as not every class has enough eligible voxels, which of them count, (K, number) bool.
    """
    chosen = torch.where(eligible, torch.rand(eligible.shape, device=eligible.device), -1.0).topk(number, 1).indices
    return chosen, eligible.gather(1, chosen)


def at_voxels(features: Tensor, sample: Tensor, voxel: Tensor) -> Tensor:
    """Returns the features of some voxels, (*N, F).

    Indexed by two tensors, the whole map would be copied twice in the backward pass, which takes longer than all else.

    Args:
        features: (B, F, *spatial).
        sample: (*N) long.
        voxel: (*N) long, into the flattened spatial axes.
    """
    size, voxels = features.shape[1], features[0, 0].numel()
    channels = torch.arange(size, device=features.device) * voxels
    return features.take((sample * (size * voxels) + voxel)[..., None] + channels)


def summed(part: Tensor) -> Tensor:
    """Returns the sum over all processes of DDP, in place; of the only one the tensor as it is."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(part)
    return part


def gathered(part: Tensor) -> Tensor:
    """Returns a tensor of all processes of DDP, one after the other; of the only one as it is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return part
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)
