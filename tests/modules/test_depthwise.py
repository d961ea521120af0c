"""Depthwise convolutions: the same as PyTorch's, without its slow backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnunet_mutual.modules.depthwise import depthwise


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 5), (1, 1)])
def test_values_and_gradients_are_pytorchs(kernel: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    of: Any = nn.Conv3d if len(kernel) == 3 else nn.Conv2d
    convolution = of(6, 6, kernel, padding=tuple(n // 2 for n in kernel), groups=6)
    x = torch.randn(2, 6, *(5, 7, 4)[-len(kernel) :], requires_grad=True)
    weights = torch.randn(x.shape)
    inputs = (x, convolution.weight, convolution.bias)
    expected = convolution(x)
    of_pytorch = torch.autograd.grad((expected * weights).sum(), inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = depthwise(convolution, x)
        own = torch.autograd.grad((found * weights).sum(), inputs)
    torch.testing.assert_close(found, expected)
    for a, b in zip(own, of_pytorch, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert "aten::convolution_backward" not in {event.name for event in profile.events()}


def test_only_what_is_asked_for_is_computed() -> None:
    convolution = nn.Conv3d(2, 2, 3, padding=1, groups=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = depthwise(convolution, torch.randn(1, 2, 4, 4, 4))
    assert found.dtype == torch.float32
    found.sum().backward()
    assert convolution.weight.grad is not None and convolution.weight.grad.shape == convolution.weight.shape
