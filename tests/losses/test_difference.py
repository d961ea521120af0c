"""Prediction difference: by hand, against loops, gradients, and what they must leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_contract import keeps_the_contract, slope_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_mutual.losses.difference import prediction_difference, prediction_difference_regions

SHAPES = [(3, 4), (2, 2, 3)]
HALF = [torch.float16, torch.bfloat16]


# Prediction difference of plain labels. Liver 1, tumour 2, spleen 3; the network segments tumour and spleen.


def surprise_of_rivals(logits: np.ndarray, target: np.ndarray, rivals: np.ndarray, ignored: int | None) -> float:
    """Mean over R of -log(1 - q + 1e-6), voxel by voxel."""
    found = []
    for sample in range(len(logits)):
        for voxel in np.ndindex(*logits.shape[2:]):
            value = int(target[(sample, 0, *voxel)])
            if value == ignored:
                continue
            against = rivals[sample, value]
            z = logits[(sample, slice(None), *voxel)]
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            if against.any():
                found.append(-math.log(sum(p[~against]) + 1e-6))
    return float(np.mean(found)) if found else 0.0


def random_plain(seed: int, shape: tuple[int, ...], values: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of four classes; a drawn value is never its own rival, and background has none."""
    rng = np.random.default_rng([seed, len(shape)])
    rivals = rng.random((3, values, 4)) < 0.4
    for value in range(4):
        rivals[:, value, value] = False
    rivals[:, 0] = False
    target = rng.integers(0, values, (3, 1, *shape))
    return torch.from_numpy(rng.normal(0, 3, (3, 4, *shape))), torch.from_numpy(target), torch.from_numpy(rivals)


def table(*pairs: tuple[int, int]) -> Tensor:
    """One sample's rivals: (drawn value, label that cannot be there)."""
    rivals = torch.zeros(1, 4, 4, dtype=torch.bool)
    for value, label in pairs:
        rivals[0, value, label] = True
    return rivals


def row(*labels: int) -> Tensor:
    return torch.tensor(labels)[None, None, None]


def test_plain_values_and_gradient_by_hand() -> None:
    # Uniform over four classes: 1 - q is 3/4 with one rival and 1/2 with two.
    logits = torch.zeros(1, 4, 1, 2)
    one = prediction_difference(logits, row(1, 0), table((1, 3)))
    assert one.item() == pytest.approx(math.log(4 / 3), abs=1e-5)
    two = prediction_difference(logits, row(1, 0), table((1, 2), (1, 3)))
    assert two.item() == pytest.approx(math.log(2), abs=1e-5)
    # d(-log(1 - q)) / dz_k is p_k for a rival and p_k - p_k / (1 - q) for the others.
    slope = slope_of(lambda z: prediction_difference(z, row(1, 0), table((1, 3))), logits)[0, :, 0]
    torch.testing.assert_close(slope[:, 0], torch.tensor([-1 / 12, -1 / 12, -1 / 12, 0.25]), atol=1e-6, rtol=1e-5)
    assert torch.equal(slope[:, 1], torch.zeros(4))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignore_label", [None, 3, 9])
@pytest.mark.parametrize("values", [4, 6])
def test_plain_equals_loops(values: int, ignore_label: int | None, shape: tuple[int, ...]) -> None:
    for seed in range(3):
        logits, target, rivals = random_plain(seed, shape, values)
        rivals[:, 0, 3] = True  # what counts for background counts for no ignored voxel
        if ignore_label is not None:
            target[:, :, 1] = ignore_label  # 9 has no row in the table
        expected = surprise_of_rivals(logits.numpy(), target.numpy(), rivals.numpy(), ignore_label)
        assert expected > 0.1
        found = prediction_difference(logits, target, rivals, ignore_label=ignore_label)
        assert found.dtype == torch.float64 and found.item() == pytest.approx(expected, rel=1e-10)
        single = prediction_difference(logits.float(), target.short(), rivals, ignore_label=ignore_label)
        assert single.dtype == torch.float32 and single.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ignore_label", [None, 2])
def test_plain_gradients_are_those_of_the_value(ignore_label: int | None) -> None:
    logits, target, rivals = random_plain(3, (2, 2))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: prediction_difference(z, target, rivals, ignore_label=ignore_label), logits
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_plain_pushes_rivals_down_inside_and_leaves_the_rest_alone(seed: int) -> None:
    logits, target, rivals = random_plain(seed, (3, 4))
    target[:, :, 0] = 0
    target[:, :, 2] = 9
    slope = slope_of(lambda z: prediction_difference(z, target, rivals, ignore_label=9), logits)
    assert torch.equal(slope[:, :, [0, 2]], torch.zeros_like(slope[:, :, [0, 2]]))
    for sample, voxel in np.ndindex(3, 4):
        against = rivals[sample, int(target[sample, 0, 1, voxel])]
        here = slope[sample, :, 1, voxel]
        if against.any():
            assert (here[against] > 0).all() and (here[~against] < 0).all()
        else:
            assert torch.equal(here, torch.zeros_like(here))


def test_plain_does_not_punish_overlap_partners() -> None:
    # Drawn liver: the spleen cannot be there, the tumour can.
    logits, _, _ = random_plain(4, (1, 3))
    slope = slope_of(lambda z: prediction_difference(z, row(1, 1, 1), table((1, 3))), logits[:1])[0, :, 0]
    assert (slope[2] < 0).all() and (slope[3] > 0).all()
    # Moving probability from the tumour to the liver changes nothing.
    p = logits[:1].softmax(1)
    moved = p.clone()
    moved[:, 1] += p[:, 2] / 2
    moved[:, 2] /= 2
    before, after = (prediction_difference(x.log(), row(1, 1, 1), table((1, 3))) for x in (p, moved))
    torch.testing.assert_close(before, after)


def test_plain_without_a_rival_is_zero_with_zero_gradient() -> None:
    logits, target, rivals = random_plain(5, (3, 4))
    nothing = torch.zeros_like(rivals)
    for drawn, against, ignored in ((target, nothing, None), (0 * target, rivals, None), (0 * target + 7, rivals, 7)):
        loss = lambda z, d=drawn, a=against, i=ignored: prediction_difference(z, d, a, ignore_label=i)  # noqa: E731
        assert loss(logits).item() == 0
        assert torch.equal(slope_of(loss, logits), torch.zeros_like(logits))


@pytest.mark.parametrize("lead", [4.0, 8.0, 11.0])
def test_plain_does_not_cancel_where_a_rival_is_nearly_certain(lead: float) -> None:
    logits = torch.tensor([0.0, 0.0, 0.0, lead]).reshape(1, 4, 1, 1)
    expected = -math.log(3 / (3 + math.exp(lead)) + 1e-6)
    found = prediction_difference(logits, row(1), table((1, 3)))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert slope_of(lambda z: prediction_difference(z, row(1), table((1, 3))), logits)[0, 3] > 0.8


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_plain_extreme_logits_are_finite(dtype: torch.dtype) -> None:
    logits, target, rivals = random_plain(6, (3, 4))
    rivals[:, 3] = True  # a table that leaves nothing possible: bounded, not NaN
    extreme = (1e4 * logits.sign()).to(dtype)
    loss = prediction_difference(extreme, target, rivals)
    assert loss.isfinite() and 0 < loss <= -math.log(1e-6) + 1e-4
    assert slope_of(lambda z: prediction_difference(z, target, rivals), extreme).isfinite().all()


@pytest.mark.parametrize("dtype", HALF)
def test_plain_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, target, rivals = random_plain(7, (3, 4))
    half = logits.to(dtype)
    found = prediction_difference(half, target, rivals)
    assert found.dtype == torch.float32 and torch.equal(found, prediction_difference(half.float(), target, rivals))
    slope = slope_of(lambda z: prediction_difference(z, target, rivals), half)
    assert slope.dtype == dtype and slope.isfinite().all() and slope.any()


@settings(deadline=None, max_examples=15)
@given(order=st.permutations(range(3)), seed=st.integers(0, 1000))
def test_plain_samples_may_come_in_any_order(order: list[int], seed: int) -> None:
    logits, target, rivals = random_plain(seed, (2, 3))
    again = prediction_difference(logits[order], target[order], rivals[order])
    torch.testing.assert_close(again, prediction_difference(logits, target, rivals))


# Prediction difference of regions.


def surprise_of_disjoint(logits: np.ndarray, target: np.ndarray, disjoint: np.ndarray, has_ignore: bool) -> float:
    regions = logits.shape[1]
    found = []
    for sample in range(len(logits)):
        for voxel in np.ndindex(*logits.shape[2:]):
            if has_ignore and target[(sample, regions, *voxel)]:
                continue
            for a in range(regions):
                if any(disjoint[sample, a, b] and target[(sample, b, *voxel)] for b in range(regions)):
                    p = 1 / (1 + math.exp(-logits[(sample, a, *voxel)]))
                    found.append(-math.log(1 - p + 1e-6))
    return float(np.mean(found)) if found else 0.0


def random_regions(seed: int, shape: tuple[int, ...], has_ignore: bool) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng([seed, len(shape), has_ignore])
    target = rng.random((3, 3 + has_ignore, *shape)) < 0.4
    logits, disjoint = rng.normal(0, 3, (3, 3, *shape)), rng.random((3, 3, 3)) < 0.4
    return torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(disjoint)


@pytest.mark.parametrize("has_ignore", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_regions_equal_loops(shape: tuple[int, ...], has_ignore: bool) -> None:
    for seed in range(4):
        logits, target, disjoint = random_regions(seed, shape, has_ignore)
        expected = surprise_of_disjoint(logits.numpy(), target.numpy(), disjoint.numpy(), has_ignore)
        assert expected > 0.1
        found = prediction_difference_regions(logits, target, disjoint, has_ignore=has_ignore)
        assert found.dtype == torch.float64 and found.item() == pytest.approx(expected, rel=1e-10)
        numbers = prediction_difference_regions(logits.float(), target.float(), disjoint.float(), has_ignore=has_ignore)
        assert numbers.dtype == torch.float32 and numbers.item() == pytest.approx(expected, rel=1e-5)


def test_regions_by_hand() -> None:
    # Two voxels; region 1 is drawn on the first. Region 0 cannot be there, region 2 can.
    target = torch.tensor([[0, 0], [1, 0], [0, 0]])[None, :, None]
    disjoint = torch.zeros(1, 3, 3)
    disjoint[0, 0, 1] = 1
    logits = torch.full((1, 3, 1, 2), math.log(3))
    assert prediction_difference_regions(logits, target, disjoint).item() == pytest.approx(math.log(4), abs=1e-5)
    slope = slope_of(lambda z: prediction_difference_regions(z, target, disjoint), logits)[0, :, 0]
    torch.testing.assert_close(slope[0, 0].item(), 0.75, atol=1e-5, rtol=0)
    slope[0, 0] = 0
    assert torch.equal(slope, torch.zeros(3, 2))


@pytest.mark.parametrize("has_ignore", [False, True])
def test_regions_gradients(has_ignore: bool) -> None:
    logits, target, disjoint = random_regions(9, (2, 3), has_ignore)
    loss = lambda z: prediction_difference_regions(z, target, disjoint, has_ignore=has_ignore)  # noqa: E731
    assert torch.autograd.gradcheck(loss, logits.clone().requires_grad_())
    slope = slope_of(loss, logits)
    for place in np.ndindex(*slope.shape):
        sample, region, *voxel = place
        against = bool((disjoint[sample, region] & target[(sample, slice(3), *voxel)]).any())
        against &= not (has_ignore and target[(sample, 3, *voxel)])
        assert slope[place] > 0 if against else slope[place] == 0


def test_regions_without_a_pair_are_zero_with_zero_gradient() -> None:
    logits, target, disjoint = random_regions(10, (2, 3), True)
    everywhere = target.clone()
    everywhere[:, 3] = True
    for drawn, apart in ((target, 0 * disjoint), (0 * target, disjoint), (everywhere, disjoint)):
        loss = lambda z, d=drawn, a=apart: prediction_difference_regions(z, d, a, has_ignore=True)  # noqa: E731
        assert loss(logits).item() == 0
        assert torch.equal(slope_of(loss, logits), torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_regions_extreme_and_half_precision_logits(dtype: torch.dtype) -> None:
    logits, target, disjoint = random_regions(11, (2, 3), False)
    extreme = (1e4 * logits.sign()).to(dtype)
    loss = prediction_difference_regions(extreme, target, disjoint)
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 1
    assert slope_of(lambda z: prediction_difference_regions(z, target, disjoint), extreme).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prediction_difference_regions(extreme, target, disjoint), loss)


# Both of them.


def test_both_keep_the_contract_of_losses() -> None:
    logits, target, rivals = random_plain(12, (2, 2), 6)
    keeps_the_contract(lambda z: prediction_difference(z, target, rivals, ignore_label=3), logits)
    logits, target, disjoint = random_regions(12, (2, 2), True)
    keeps_the_contract(lambda z: prediction_difference_regions(z, target, disjoint, has_ignore=True), logits)


def test_nothing_waits_for_the_device() -> None:
    """Tensors without data: whatever reads a value or depends on one in Python raises."""
    with FakeTensorMode():
        logits, target = torch.randn(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 1, 4, 4)
        square = torch.ones(2, 3, 3, dtype=torch.bool)
        total = prediction_difference(logits, target, square, ignore_label=3)
        total = total + prediction_difference_regions(logits, torch.zeros(2, 4, 4, 4), square, has_ignore=True)
        total.backward()
        assert logits.grad is not None and logits.grad.shape == logits.shape
