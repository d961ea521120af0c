"""Sharpening and consistency, against the published formulas for two classes and loops over voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_mutual.losses.consistency import probabilities, soft_cross_entropy_and_dice, squared_difference


def logits(seed: int, channels: int, size: tuple[int, ...] = (3, 4, 5)) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed)) * 2


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


def test_hard_targets_give_the_loss_of_nnunet() -> None:
    z = logits(6, 4)
    labels = torch.randint(0, 4, (2, 1, 3, 4, 5), generator=torch.Generator().manual_seed(1))
    target = torch.zeros_like(z).scatter_(1, labels, 1)
    inside = torch.ones_like(labels, dtype=torch.bool)
    stock = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    torch.testing.assert_close(soft_cross_entropy_and_dice(z, target, inside, regions=False), stock(z, labels.float()))


@pytest.mark.parametrize("regions", [False, True])
def test_voxels_outside_count_for_nothing(regions: bool) -> None:
    z = logits(7, 3).requires_grad_()
    target = probabilities(logits(8, 3), regions=regions)
    inside = torch.rand(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(2)) > 0.5
    loss = soft_cross_entropy_and_dice(z, target, inside, regions=regions)
    changed = torch.where(inside, target, 1 - target)
    assert soft_cross_entropy_and_dice(z, changed, inside, regions=regions).item() == pytest.approx(loss.item())
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient.masked_fill(inside, 0) == 0).all() and (gradient * inside).abs().max() > 0


def test_regions_count_each_where_it_is_known() -> None:
    z = logits(7, 3).requires_grad_()
    target = probabilities(logits(8, 3), regions=True).round()
    counted = torch.rand(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    loss = soft_cross_entropy_and_dice(z, target, counted, regions=True)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(z[counted], target[counted])
    dice = []
    for r in range(3):
        p, q = z[:, r].sigmoid()[counted[:, r]], target[:, r][counted[:, r]]
        dice.append((2 * (p * q).sum() + 1e-5) / (p.sum() + q.sum() + 1e-5))
    torch.testing.assert_close(loss, bce - torch.stack(dice).mean())


@pytest.mark.parametrize("regions", [False, True])
def test_the_best_prediction_is_the_target(regions: bool) -> None:
    truth = logits(9, 3)
    inside = torch.ones(2, 1, 3, 4, 5, dtype=torch.bool)
    hard = probabilities(truth, regions=regions, temperature=0.01).round()
    best = soft_cross_entropy_and_dice(truth * 1000, hard, inside, regions=regions)
    assert best.item() == pytest.approx(-1, abs=1e-3)
    assert soft_cross_entropy_and_dice(truth, hard, inside, regions=regions) > best
