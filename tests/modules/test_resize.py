"""Interpolation by products against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_mutual.modules.resize import interpolated


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 3, 4, 5), (8, 10)),
        ((2, 3, 4, 5, 6), (8, 10, 12)),
        ((1, 2, 1, 7, 5), (1, 14, 15)),  # an axis that stays, one of a single voxel, another factor
        ((1, 2, 6, 7, 5), (3, 10, 5)),  # smaller, no whole factor
    ],
)
def test_values_and_gradients_are_those_of_pytorch(shape, size):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*shape[:2], *size, dtype=torch.float64)
    expected = F.interpolate(x, size=size, mode="trilinear" if len(size) == 3 else "bilinear")
    (asked,) = torch.autograd.grad((expected * weight).sum(), x)
    found = interpolated(x, size)
    (gradient,) = torch.autograd.grad((found * weight).sum(), x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, asked)


def test_autocast_does_not_lower_the_precision():
    x = torch.randn(1, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = interpolated(x, (8, 8))
    assert found.dtype == torch.float32
    assert torch.equal(found, interpolated(x, (8, 8)))


def test_a_training_may_follow_a_prediction():
    with torch.inference_mode():
        interpolated(torch.randn(1, 1, 9, 11), (18, 33))
    x = torch.randn(1, 1, 9, 11, requires_grad=True)
    interpolated(x, (18, 33)).sum().backward()
    assert x.grad is not None


def test_tracing_leaves_no_traces():
    with FakeTensorMode():
        interpolated(torch.empty(1, 1, 13, 7), (26, 35))
    assert interpolated(torch.ones(1, 1, 13, 7), (26, 35)).sum().item() == pytest.approx(26 * 35)
