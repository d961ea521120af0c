"""Arithmetic that stays exact and finite: under autocast, at zero, in half precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

SHORTEST = 1e-6  # a shorter vector has no direction


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays, so that gradients can be checked."""
    return x if x.dtype == torch.float64 else x.float()


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product that autocast leaves in the precision of its factors."""
    with without_autocast(a.device):
        return a @ b


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Context in which everything is computed in the precision of its inputs."""
    # On MPS there is no autocast before torch 2.5, and asking for it raises.
    return nullcontext() if device.type == "mps" else torch.autocast(device.type, enabled=False)


def unit(x: Tensor, dim: int) -> Tensor:
    """Vectors along ``dim`` of length one; those shorter than ``SHORTEST`` become zero, with zero gradient."""
    square = x.square().sum(dim, keepdim=True)
    has_direction = square > SHORTEST**2
    # The inner where keeps the root's infinite slope at zero out of the backward pass; 0 * inf would be NaN.
    return torch.where(has_direction, x * torch.where(has_direction, square, 1).rsqrt(), 0)
