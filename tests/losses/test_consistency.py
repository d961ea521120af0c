"""Sharpening and consistency, against the published formulas for two classes and loops over voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_contract import logits

from nnunet_mutual.losses.consistency import probabilities, sharpened, squared_difference


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_sharpening_of_two_classes_is_the_published_one(temperature: float) -> None:
    z = logits(0, 2)
    p = z.double().softmax(1)
    power = p ** (1 / temperature)
    torch.testing.assert_close(
        probabilities(z, regions=False, temperature=temperature).double(),
        power / power.sum(1, keepdim=True),
        atol=1e-6,
        rtol=1e-5,
    )
    one = z[:, :1]
    sigmoid = probabilities(one, regions=True, temperature=temperature).double()
    p = one.double().sigmoid() ** (1 / temperature)
    q = (1 - one.double().sigmoid()) ** (1 / temperature)
    torch.testing.assert_close(sigmoid, p / (p + q), atol=1e-6, rtol=1e-5)


def test_sharpening_of_many_classes_is_a_distribution() -> None:
    sharp = probabilities(logits(1, 7), regions=False, temperature=0.1)
    torch.testing.assert_close(sharp.sum(1), torch.ones_like(sharp[:, 0]))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 2.0])
def test_sharpening_probabilities_is_dividing_logits(regions: bool, temperature: float) -> None:
    z = logits(1, 5).double()
    found = sharpened(probabilities(z, regions=regions), regions=regions, temperature=temperature)
    torch.testing.assert_close(found, probabilities(z, regions=regions, temperature=temperature), atol=1e-6, rtol=1e-5)
    certain = torch.tensor([[[0.0]], [[1.0]], [[0.0]]]).movedim(0, 1)
    assert torch.equal(sharpened(certain, regions=regions, temperature=temperature), certain)


def test_consistency_of_two_classes_is_the_mean_squared_error_of_one() -> None:
    p, q = (logits(seed, 2).softmax(1) for seed in (2, 3))
    inside = torch.rand(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    expected = np.mean([(float(p[i]) - float(q[i])) ** 2 for i in _places(inside)])
    assert squared_difference(p, q, inside).item() == pytest.approx(expected, rel=1e-5)


def _places(inside: torch.Tensor) -> list[tuple[int, ...]]:
    return [(int(b), 1, *map(int, rest)) for b, _, *rest in inside.nonzero().tolist()]


def test_nothing_inside_teaches_nothing() -> None:
    z = logits(4, 3).requires_grad_()
    nowhere = torch.zeros(2, 1, 3, 4, 5, dtype=torch.bool)
    loss = squared_difference(z.softmax(1), logits(5, 3).softmax(1), nowhere)
    assert loss.item() == 0 and torch.autograd.grad(loss, z)[0].abs().max() == 0
