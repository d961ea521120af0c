"""What every loss promises about numbers: precision, gradients, autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def slope_of(function: Function, x: Tensor) -> Tensor:
    """The gradient of the sum of a function's values."""
    leaf = x.detach().clone().requires_grad_()
    function(leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def keeps_the_contract(function: Function, x: Tensor) -> None:
    """Checks a function of one floating tensor, given in float64.

    Half precision is computed in float32, autocast of the forward pass changes nothing, float64 stays float64 with
    right gradients, and torch.func can differentiate it.
    """
    assert function(x).dtype == torch.float64
    assert torch.autograd.gradcheck(function, [x.detach().clone().requires_grad_()])
    slope = torch.func.grad(lambda z: function(z).sum())(x)
    assert slope.abs().max() > 0, "an input without gradient proves nothing"
    torch.testing.assert_close(slope, slope_of(function, x))

    single = x.float()
    found = function(single)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), function(x), rtol=1e-5, atol=1e-6)
    leaf = single.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = function(leaf)
    assert torch.equal(mixed, found)
    mixed.sum().backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, slope_of(function, single))

    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        assert torch.equal(function(half), function(half.float()))
        of_half = slope_of(function, half)
        assert of_half.dtype == dtype
        torch.testing.assert_close(of_half.float(), slope_of(function, half.float()), rtol=1e-2, atol=1e-4)


def logits(seed: int, channels: int, size: tuple[int, ...] = (3, 4, 5)) -> Tensor:
    """Of two samples, (2, channels, *size)."""
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed)) * 2
