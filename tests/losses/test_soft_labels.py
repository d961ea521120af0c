"""Losses with soft labels: nnU-Net's for certain ones, best met by the soft label itself where they are squared."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from loss_contract import keeps_the_contract, logits, slope_of
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_mutual.losses.consistency import probabilities
from nnunet_mutual.losses.soft import soft_dice, soft_label_loss

REGIONS = pytest.mark.parametrize("regions", [False, True])
SQUARED = pytest.mark.parametrize("squared", [False, True])


def logits_of(p: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.zeros_like(p), torch.logit(p)], 1)


def test_dice_by_hand() -> None:
    p, q = torch.tensor([[[0.5, 1.0]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 1.0]], [[0.0, 0.5]]])
    everywhere = torch.ones(2, 1, 2, dtype=torch.bool)
    assert soft_dice(p, q, everywhere, squared=True, smooth=0).item() == pytest.approx(2 * 1.5 / (1.25 + 2.25))
    assert soft_dice(p, q, everywhere, squared=False, smooth=0).item() == pytest.approx(2 * 1.5 / (1.5 + 2.5))
    inside = torch.tensor([[[True, False]], [[True, True]]])
    assert soft_dice(p, q, inside, squared=True, smooth=0).item() == pytest.approx(2 * 0.5 / (0.25 + 1.25))
    assert soft_dice(p * 0, q * 0, everywhere, squared=True).item() == 1


def test_a_dice_of_each_sample_by_hand() -> None:
    p, q = torch.tensor([[[0.5, 1.0]], [[0.5, 0.0]]]), torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]])
    everywhere = torch.ones(2, 1, 2, dtype=torch.bool)
    found = soft_dice(p, q, everywhere, squared=True, per_sample=True, smooth=0)
    assert found.tolist() == [[pytest.approx(2 * 1.5 / 3.25)], [pytest.approx(2 * 0.5 / 1.25)]]


def test_only_labels_that_a_sample_shows_have_a_dice() -> None:
    z = logits(6, 3)
    target = probabilities(logits(7, 3), regions=False)
    inside = torch.ones(2, 1, 3, 4, 5, dtype=torch.bool)
    loss = partial(soft_label_loss, z, target, inside, regions=False, squared=True)
    nothing = loss(present=torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(nothing, -(target * z.log_softmax(1)).sum(1).mean())
    dice = soft_dice(z.softmax(1), target, inside, squared=True, per_sample=True)
    present = torch.tensor([[True, True, False], [True, True, True]])  # the background never has one
    shown = torch.stack([dice[0, 1], dice[1, 1], dice[1, 2]]).mean()
    torch.testing.assert_close(loss(present=present), nothing - shown)


def test_faint_foreground_is_not_made_certain() -> None:
    """A patch where the teacher sees 0.2 of a label and the student 0.8: Dice over the batch asks for yet more."""
    q = torch.full((1, 1, 100), 0.2, dtype=torch.float64)
    target = torch.cat([1 - q, q], 1)
    inside = torch.ones(1, 1, 100, dtype=torch.bool)

    def slope(**options: torch.Tensor | bool) -> float:
        function = partial(soft_label_loss, target=target, inside=inside, regions=False, **options)
        entropy = partial(function, present=torch.zeros(1, 2, dtype=torch.bool))
        z = logits_of(torch.full((1, 100), 0.8, dtype=torch.float64))
        return (slope_of(function, z) - slope_of(entropy, z))[:, 1].sum().item()

    assert slope() < 0, "the Dice of nnU-Net no longer draws the student away from its teacher"
    assert slope(squared=True) > 0 and slope(squared=True, present=torch.zeros(1, 2, dtype=torch.bool)) == 0


def test_the_best_answer_to_a_soft_label_is_the_label() -> None:
    """nnU-Net's Dice is highest at certainty: with it, a network learns to be surer than its teacher."""
    target = torch.full((1, 1, 100), 0.6, dtype=torch.float64)
    inside = torch.ones(1, 1, 100, dtype=torch.bool)
    steps = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    best = {}
    for squared in (True, False):
        dice = [soft_dice(torch.full_like(target, p), target, inside, squared=squared)[0] for p in steps]
        best[squared] = steps[torch.stack(dice).argmax()].item()
    assert best == {True: pytest.approx(0.6), False: pytest.approx(0.99)}
    labels = torch.cat([1 - target, target], 1)

    def slope(squared: bool) -> float:
        function = partial(soft_label_loss, target=labels, inside=inside, regions=False, squared=squared)
        return slope_of(function, logits_of(target[:, 0]))[:, 1].sum().item()

    assert slope(True) == pytest.approx(0, abs=1e-6)
    assert slope(False) < -1e-2


def test_certain_labels_give_the_loss_of_nnunet() -> None:
    z = logits(6, 4)
    labels = torch.randint(0, 4, (2, 1, 3, 4, 5), generator=torch.Generator().manual_seed(1))
    target = torch.zeros_like(z).scatter_(1, labels, 1)
    inside = torch.ones_like(labels, dtype=torch.bool)
    stock = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    torch.testing.assert_close(soft_label_loss(z, target, inside, regions=False), stock(z, labels.float()))


@SQUARED
@REGIONS
def test_certain_and_right(regions: bool, squared: bool) -> None:
    target = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    target[:, 0, :2], target[:, 1, 2], target[:, 2, 3] = 1, 1, 1
    inside = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    best = soft_label_loss(60 * target - 30, target, inside, regions=regions, squared=squared)
    assert best.item() == pytest.approx(-1, abs=1e-6)
    assert soft_label_loss(2 * target, target, inside, regions=regions, squared=squared) > best


@SQUARED
@REGIONS
def test_the_best_prediction_is_the_target(regions: bool, squared: bool) -> None:
    truth = logits(9, 3)
    inside = torch.ones(2, 1, 3, 4, 5, dtype=torch.bool)
    hard = probabilities(truth, regions=regions, temperature=0.01).round()
    best = soft_label_loss(truth * 1000, hard, inside, regions=regions, squared=squared)
    assert best.item() == pytest.approx(-1, abs=1e-3)
    assert soft_label_loss(truth, hard, inside, regions=regions, squared=squared) > best


@SQUARED
@REGIONS
def test_voxels_outside_teach_nothing(regions: bool, squared: bool) -> None:
    z = logits(7, 3).double()
    target = probabilities(logits(8, 3), regions=regions).double()
    inside = torch.rand(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(2)) > 0.5
    function = partial(soft_label_loss, inside=inside, regions=regions, squared=squared)
    gradient = slope_of(partial(function, target=target), z)
    assert gradient.masked_select(~inside).abs().max() == 0 and gradient.masked_select(inside).abs().min() > 0
    changed = torch.where(inside, target, 1 - target)
    assert function(z, target=changed).item() == pytest.approx(function(z, target=target).item())
    nothing = soft_label_loss(z, target, inside & False, regions=regions, squared=squared)
    assert nothing.item() == -1  # two empty maps agree


def test_regions_count_each_where_it_is_known() -> None:
    z = logits(7, 3)
    target = probabilities(logits(8, 3), regions=True).round()
    counted = torch.rand(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    loss = soft_label_loss(z, target, counted, regions=True)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(z[counted], target[counted])
    dice = []
    for r in range(3):
        p, q = z[:, r].sigmoid()[counted[:, r]], target[:, r][counted[:, r]]
        dice.append((2 * (p * q).sum() + 1e-5) / (p.sum() + q.sum() + 1e-5))
    torch.testing.assert_close(loss, bce - torch.stack(dice).mean())


@SQUARED
@REGIONS
def test_soft_labels_keep_the_contract_of_losses(regions: bool, squared: bool) -> None:
    z = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = z.flip(0).softmax(1)
    inside = torch.rand(2, 1, 7, generator=torch.Generator().manual_seed(1)) > 0.3

    def function(x: torch.Tensor) -> torch.Tensor:
        labels = target if x.dtype == target.dtype else target.float()
        return soft_label_loss(x, labels, inside, regions=regions, squared=squared)

    keeps_the_contract(function, z)
