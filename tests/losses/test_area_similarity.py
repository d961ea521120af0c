"""Area-similarity contrast: its values at agreement and at chance, and the hazards of the published form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from loss_contract import keeps_the_contract, slope_of

from nnunet_mutual.losses.area_similarity import (
    PUBLISHED,
    ROBUST,
    Contrast,
    area_similarity,
    area_similarity_contrast,
)


def maps(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apart(samples: int, classes: int = 1, voxels: int = 40) -> torch.Tensor:
    """(B, K, V): certain maps that do not overlap from sample to sample."""
    z = torch.zeros(samples, classes, voxels, dtype=torch.float64)
    for b in range(samples):
        z[b, :, b * (voxels // samples) : (b + 1) * (voxels // samples)] = 1
    return z


def everywhere(samples: int) -> torch.Tensor:
    return torch.ones(samples, dtype=torch.bool)


def test_similarity_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = area_similarity(a, b, 1e-5)
    expected = torch.tensor([[(2 + 1e-5) / (2.25 + 1e-5), 1e-5 / (1.25 + 1e-5)]])
    torch.testing.assert_close(found, expected)
    assert area_similarity(b[1:], b[1:], 1e-5).item() == 1  # two empty maps


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_agreement_and_chance(samples: int) -> None:
    z = apart(samples)
    loss, active = area_similarity_contrast(z, z, everywhere(samples), form=PUBLISHED)
    assert loss.item() == pytest.approx(-1 + math.log(math.e + 2 * samples - 2), abs=1e-4)
    assert active.item() == 2 * samples
    alike = torch.ones_like(z)
    loss, _ = area_similarity_contrast(alike, alike, everywhere(samples), form=PUBLISHED)
    assert loss.item() == pytest.approx(math.log(2 * samples - 1), abs=1e-6)  # all alike: nothing is told apart
    perfect, _ = area_similarity_contrast(z, z, everywhere(samples))
    assert perfect.item() == pytest.approx(-1 + math.log(math.e + 2 * samples - 2), abs=1e-4)  # positive term 0


def test_one_sample_has_no_opposite() -> None:
    z, other = maps(1, 2, 30), maps(1, 2, 30, seed=1)
    loss, active = area_similarity_contrast(z, other, everywhere(1), form=PUBLISHED)
    assert loss.item() == 0 and active.item() == 0
    loss, active = area_similarity_contrast(z, other, everywhere(1))
    s = area_similarity(z[0], other[0]).diagonal()
    assert loss.item() == pytest.approx((1 - s).mean().item()) and active.item() == 0  # agreement is still asked for


def test_units_of_different_classes_are_no_opposites() -> None:
    z = apart(2, classes=3)
    several, active = area_similarity_contrast(z, z, everywhere(2), form=PUBLISHED)
    one, _ = area_similarity_contrast(z[:, :1], z[:, :1], everywhere(2), form=PUBLISHED)
    torch.testing.assert_close(several, one)
    assert active.item() == 12


def of_two_networks(z: torch.Tensor, form: Contrast) -> float:
    """The loss where both networks say the same."""
    return area_similarity_contrast(z, z, everywhere(len(z)), form=form)[0].item()


def test_empty_crops_do_not_reward_invented_foreground() -> None:
    empty = torch.zeros(2, 1, 50, dtype=torch.float64)
    invented = empty.clone()
    invented[0, 0, :10] = 1
    assert of_two_networks(invented, PUBLISHED) < of_two_networks(empty, PUBLISHED) - 0.1
    assert of_two_networks(invented, ROBUST) == of_two_networks(empty, ROBUST) == 0
    gradient = slope_of(lambda x: area_similarity_contrast(x, empty, everywhere(2))[0], empty)
    assert gradient.abs().max() == 0


def test_organs_at_the_same_place_are_no_opposites() -> None:
    truth = torch.zeros(2, 1, 60, dtype=torch.float64)
    truth[:, :, :20] = 1
    moved = truth.clone()
    moved[1] = moved[1].roll(20, -1)  # both networks agree on something wrong in the second sample
    assert of_two_networks(moved, PUBLISHED) < of_two_networks(truth, PUBLISHED) - 0.1
    assert of_two_networks(truth, ROBUST) == pytest.approx(0, abs=1e-6)
    assert of_two_networks(moved, ROBUST) > 0.1
    assert area_similarity_contrast(truth, truth, everywhere(2))[1].item() == 0


def test_samples_that_a_network_cannot_see_do_not_count() -> None:
    a, b = maps(3, 2, 30), maps(3, 2, 30, seed=1)
    form = replace(ROBUST, alike=2.0)
    present = torch.tensor([True, False, True])
    loss, active = area_similarity_contrast(a, b, present, form=form)
    alone, same = area_similarity_contrast(a[[0, 2]], b[[0, 2]], everywhere(2), form=form)
    torch.testing.assert_close(loss, alone)
    assert active == same == 8
    gradient = slope_of(lambda x: area_similarity_contrast(x, b, present, form=form)[0], a)
    assert gradient[1].abs().max() == 0 and gradient[0].abs().max() > 0


def test_a_queue_gives_opposites_to_a_single_sample() -> None:
    z, queue = apart(3)[:1], apart(3)[1:].movedim(0, 1)
    filled = torch.ones(1, 2, dtype=torch.bool)
    loss, active = area_similarity_contrast(z, z, everywhere(1), queue, filled)
    assert loss.item() == pytest.approx(-1 + math.log(math.e + 2), abs=1e-4) and active.item() == 2
    _, without = area_similarity_contrast(z, z, everywhere(1), queue, ~filled)
    assert without.item() == 0
    _, alike = area_similarity_contrast(z, z, everywhere(1), z.movedim(0, 1), filled[:, :1])
    assert alike.item() == 0  # an entry of the queue at the same place is no opposite either


def test_the_networks_parts_add_up_to_the_joint_gradient() -> None:
    a, b, present = maps(3, 2, 30), maps(3, 2, 30, seed=1), everywhere(3)
    queue, filled = maps(2, 4, 30, seed=2), torch.tensor([[True, False, True, True]] * 2)
    for form in (PUBLISHED, replace(ROBUST, alike=0.9)):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        area_similarity_contrast(x, y, present, queue, filled, form=form)[0].backward()
        of_first = slope_of(lambda z, f=form: area_similarity_contrast(z, b, present, queue, filled, form=f)[0], a)
        of_second = slope_of(lambda z, f=form: area_similarity_contrast(a, z, present, queue, filled, form=f)[0], b)
        torch.testing.assert_close(x.grad, of_first)
        torch.testing.assert_close(y.grad, of_second)


def test_it_keeps_the_contract_of_losses() -> None:
    other, queue = maps(3, 2, 20, seed=1), maps(2, 4, 20, seed=2)
    filled = torch.ones(2, 4, dtype=torch.bool)

    def function(x: torch.Tensor) -> torch.Tensor:
        rest = [z if x.dtype == z.dtype else z.float() for z in (other, queue)]
        return area_similarity_contrast(x, rest[0], everywhere(3), rest[1], filled, form=replace(ROBUST, alike=0.95))[0]

    keeps_the_contract(function, maps(3, 2, 20))


def test_sums_that_half_precision_cannot_hold() -> None:
    z = torch.ones(2, 1, 48**3, dtype=torch.float16)  # the sum of squares is above 65504
    loss, _ = area_similarity_contrast(z, z, everywhere(2), form=PUBLISHED)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)
