"""Convolutions of each channel by itself, which PyTorch's backward pass takes one by one on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mutual.losses.numerics import at_least_float32, without_autocast


def depthwise(convolution: Any, x: Tensor) -> Tensor:
    """Applies a depthwise convolution; on a CPU in float32, with gradients that are convolutions themselves.

    Args:
        convolution: of 2 or 3 dimensions, as many groups as channels, an odd kernel, stride 1, same size.
        x: (B, C, *spatial).

    Returns:
        (B, C, *spatial).
    """
    if x.device.type != "cpu":
        found: Tensor = convolution(x)
        return found
    with without_autocast(x.device):
        found = _Depthwise.apply(at_least_float32(x), convolution.weight)
    return found + convolution.bias.view(-1, *[1] * (x.ndim - 2))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return _same_size(x, weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        asked_x, asked_weight = context.needs_input_grad
        of_x = _same_size(gradient, weight.flip([*range(2, weight.ndim)])) if asked_x else None
        return of_x, _of_weight(x, gradient, weight.shape) if asked_weight else None


def _same_size(x: Tensor, weight: Tensor) -> Tensor:
    """Zeros around; channels last, which takes a CPU half of the time."""
    layout = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    convolve: Any = F.conv3d if x.ndim == 5 else F.conv2d
    padding = [n // 2 for n in weight.shape[2:]]
    return convolve(x.contiguous(memory_format=layout), weight, padding=padding, groups=x.shape[1]).contiguous()


def _of_weight(x: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Each channel of each sample convolved with its gradient, a kernel of the size of the image."""
    convolve: Any = F.conv3d if x.ndim == 5 else F.conv2d
    around = [n // 2 for n in reversed(shape[2:]) for _ in range(2)]
    images = F.pad(x, around).flatten(0, 1)[None]
    found = convolve(images, gradient.flatten(0, 1)[:, None].contiguous(), groups=images.shape[1])
    return found.view(len(x), *shape).sum(0)
