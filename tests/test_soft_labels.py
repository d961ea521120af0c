"""Losses with soft labels, which are best met by the soft label itself."""

from __future__ import annotations

import pytest
import torch
from loss_contract import keeps_the_contract, slope_of

from nnunet_mutual.losses.consistency import soft_cross_entropy_and_dice
from nnunet_mutual.losses.soft import soft_label_loss, squared_dice


def logits_of(p: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.zeros_like(p), torch.logit(p)], 1)


def test_squared_dice_by_hand() -> None:
    p, q = torch.tensor([[[0.5, 1.0]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 1.0]], [[0.0, 0.5]]])
    found = squared_dice(p, q, smooth=0)
    assert found.item() == pytest.approx(2 * 1.5 / (1.25 + 2.25))
    inside = torch.tensor([[[True, False]], [[True, True]]])
    assert squared_dice(p, q, inside, smooth=0).item() == pytest.approx(2 * 0.5 / (0.25 + 1.25))
    assert squared_dice(p * 0, q * 0).item() == 1


def test_the_best_answer_to_a_soft_label_is_the_label() -> None:
    """nnU-Net's Dice is highest at certainty: with it, a network learns to be surer than its teacher."""
    target = torch.full((1, 1, 100), 0.6, dtype=torch.float64)
    steps = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    squared = torch.stack([squared_dice(torch.full_like(target, p), target)[0] for p in steps])
    assert steps[squared.argmax()] == pytest.approx(0.6)
    linear = 2 * steps * 0.6 / (steps + 0.6)
    assert steps[linear.argmax()] == pytest.approx(0.99)
    labels = torch.cat([1 - target, target], 1)
    inside = torch.ones(1, 1, 100, dtype=torch.bool)

    def slope(function: object) -> float:
        z = logits_of(target[:, 0])
        return slope_of(lambda x: function(x, labels, inside, regions=False), z)[:, 1].sum().item()  # type: ignore[operator]

    assert slope(soft_label_loss) == pytest.approx(0, abs=1e-6)
    assert slope(soft_cross_entropy_and_dice) < -1e-2


@pytest.mark.parametrize("regions", [False, True])
def test_certain_and_right(regions: bool) -> None:
    target = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    target[:, 0, :2], target[:, 1, 2], target[:, 2, 3] = 1, 1, 1
    inside = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    assert soft_label_loss(60 * target - 30, target, inside, regions=regions).item() == pytest.approx(-1, abs=1e-6)


def test_voxels_outside_teach_nothing() -> None:
    z = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = z.flip(0).softmax(1)
    inside = torch.rand(2, 1, 6) > 0.4
    gradient = slope_of(lambda x: soft_label_loss(x, target, inside, regions=False), z)
    assert gradient.masked_select(~inside).abs().max() == 0 and gradient.masked_select(inside).abs().min() > 0
    nothing = soft_label_loss(z, target, inside & False, regions=True)
    assert nothing.item() == -1  # two empty maps agree


@pytest.mark.parametrize("regions", [False, True])
def test_soft_labels_keep_the_contract_of_losses(regions: bool) -> None:
    z = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = z.flip(0).softmax(1)
    inside = torch.rand(2, 1, 7, generator=torch.Generator().manual_seed(1)) > 0.3

    def function(x: torch.Tensor) -> torch.Tensor:
        return soft_label_loss(x, target if x.dtype == target.dtype else target.float(), inside, regions=regions)

    keeps_the_contract(function, z)
