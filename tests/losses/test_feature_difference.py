"""Vectors of organs and feature difference: by hand, against loops, gradients, and what they must leave alone."""

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

from nnunet_mutual.losses.difference import class_masks, feature_difference, organ_vectors
from nnunet_mutual.losses.numerics import unit

HALF = [torch.float16, torch.bfloat16]


def vectors_of_labels(features: Tensor, labels: Tensor, classes: int, **options: float) -> tuple[Tensor, Tensor]:
    """Masks of a label map; values that are no class belong to none."""
    return organ_vectors(features, class_masks(labels, classes), **options)


# Vectors of organs and regions.


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 3)])
def test_vectors_equal_loops(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    features = rng.normal(0, 1, (2, 5, *shape))
    labels = rng.choice([-1, 0, 1, 2, 9], (2, 1, *shape), p=[0.1, 0.3, 0.3, 0.2, 0.1])
    labels[1][labels[1] == 2] = 0
    labels[0][labels[0] == 1] = 0
    labels[(0, 0, *(0,) * len(shape))] = 1
    vectors, valid = vectors_of_labels(torch.from_numpy(features), torch.from_numpy(labels), 4, minimum=4)
    assert vectors.shape == (2, 4, 5) and vectors.dtype == torch.float64 and valid.dtype == torch.bool
    for sample, label in np.ndindex(2, 4):
        voxels = [v for v in np.ndindex(*shape) if labels[(sample, 0, *v)] == label]
        expected = sum((features[(sample, slice(None), *v)] for v in voxels), np.zeros(5)) / max(1, len(voxels))
        np.testing.assert_allclose(vectors[sample, label], expected, atol=1e-12)
        assert valid[sample, label] == (len(voxels) >= 4)
    assert valid.tolist() == [[True, False, True, False], [True, True, False, False]]


def test_vectors_need_a_minimum_of_voxels() -> None:
    labels = torch.tensor([1] * 8 + [2] * 7 + [0])[None, None, None]
    features = torch.ones(1, 3, 1, 16)
    assert vectors_of_labels(features, labels, 3)[1].tolist() == [[False, True, False]]
    assert vectors_of_labels(features, labels, 4, minimum=1)[1].tolist() == [[True, True, True, False]]
    assert vectors_of_labels(features, labels, 4, minimum=0)[1].tolist() == [[True, True, True, False]]


def test_organ_vectors_overlap_and_may_be_weighted() -> None:
    features = torch.tensor([[1.0, 2.0, 6.0]])[None, :, None]
    masks = torch.tensor([[1, 1, 1], [0, 0, 1], [0, 0.25, 0.25], [0, 0, 0]])[None, :, None]
    vectors, valid = organ_vectors(features, masks, minimum=0.5)
    assert vectors.flatten().tolist() == [3, 6, 4, 0]
    assert valid.tolist() == [[True, True, True, False]]
    again, _ = organ_vectors(features, masks[:, :2].bool(), minimum=0.5)
    assert torch.equal(again, vectors[:, :2])


def test_vectors_pass_the_gradient_to_their_voxels() -> None:
    features = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 1, 0], [7, 7, 0]])[None, None]
    assert torch.autograd.gradcheck(lambda h: vectors_of_labels(h, labels, 3)[0], features)
    slope = slope_of(lambda h: vectors_of_labels(h, labels, 3)[0][:, 1:].sum(), features)
    assert torch.equal(slope, (labels == 1).expand_as(slope) / 2)


@pytest.mark.parametrize("dtype", HALF)
def test_vectors_of_half_precision_features(dtype: torch.dtype) -> None:
    # The sum of 70 000 ones is no float16 and no bfloat16.
    features = torch.ones(1, 1, 70, 1000, dtype=dtype)
    labels = torch.zeros(1, 1, 70, 1000, dtype=torch.int16)
    with torch.autocast("cpu", torch.bfloat16):
        vectors, valid = vectors_of_labels(features, labels, 1)
    assert vectors.dtype == torch.float32 and vectors.item() == 1 and valid.all()
    fine = torch.randn(1, 3, 9, 9)
    plain, _ = vectors_of_labels(fine, labels[..., :9, :9], 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vectors_of_labels(fine, labels[..., :9, :9], 1)[0], plain)


# Feature difference.


def agreement(own: np.ndarray, others: np.ndarray, pairs: np.ndarray, margin: float) -> float:
    found = []
    for q, m in zip(*np.nonzero(pairs), strict=True):
        lengths = math.sqrt((own[q] ** 2).sum() * (others[m] ** 2).sum())
        cosine = (own[q] * others[m]).sum() / lengths if lengths else 0.0
        found.append(max(0.0, cosine - margin))
    return float(np.mean(found)) if found else 0.0


def random_vectors(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    own, others = rng.normal(0, 1, (4, 3)), rng.normal(0, 1, (5, 3))
    pairs = rng.random((4, 5)) < 0.5
    pairs[0, 0] = True
    others[0] = own[0] + 0.1
    return torch.from_numpy(own), torch.from_numpy(others), torch.from_numpy(pairs)


@pytest.mark.parametrize("margin", [0.0, 0.3, -0.2])
def test_feature_difference_equals_loops(margin: float) -> None:
    for seed in range(5):
        own, others, pairs = random_vectors(seed)
        if seed == 4:
            own[1], others[2] = 0, 0
            pairs[1:, 2] = True
        expected = agreement(own.numpy(), others.numpy(), pairs.numpy(), margin)
        assert expected > 0.02
        assert feature_difference(own, others, pairs, margin=margin).item() == pytest.approx(expected, rel=1e-10)
        single = feature_difference(own.float(), others.float(), pairs, margin=margin)
        assert single.dtype == torch.float32 and single.item() == pytest.approx(expected, rel=1e-5)


def test_feature_difference_by_hand() -> None:
    own = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    others = torch.tensor([[3.0, 3.0], [-1.0, 0.0]])
    pairs = torch.tensor([[True, True], [False, False]])
    # Cosines 1/sqrt(2) and -1; the second is far enough away already.
    assert feature_difference(own, others, pairs).item() == pytest.approx(math.sqrt(0.5) / 2)
    assert feature_difference(own, others, pairs, margin=0.5).item() == pytest.approx((math.sqrt(0.5) - 0.5) / 2)
    slope = slope_of(lambda w: feature_difference(w, others, pairs), own)
    # Half of d cos / d own: across own, away from the other, over own's length.
    torch.testing.assert_close(slope, torch.tensor([[0.0, math.sqrt(0.5) / 4], [0.0, 0.0]]))


def test_feature_difference_teaches_only_its_own_network() -> None:
    own, others, pairs = random_vectors(1)
    pairs[2] = False
    own.requires_grad_()
    others.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: feature_difference(w, others.detach(), pairs), own)
    feature_difference(own, others, pairs).backward()
    assert others.grad is None
    assert own.grad is not None and torch.equal(own.grad[2], torch.zeros(3, dtype=own.dtype)) and own.grad[0].any()
    stepped = own.detach() - 0.1 * own.grad
    assert feature_difference(stepped, others, pairs) < feature_difference(own, others, pairs)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), others_scale=st.floats(1e-3, 1e3))
def test_feature_difference_depends_on_directions_only(seed: int, scale: float, others_scale: float) -> None:
    own, others, pairs = random_vectors(seed)
    plain = feature_difference(own, others, pairs)
    torch.testing.assert_close(feature_difference(scale * own, others_scale * others, pairs), plain)
    assert 0 <= plain <= 1
    # Moving along a direction does not change it.
    slope = slope_of(lambda w: feature_difference(w, others, pairs), own)
    torch.testing.assert_close((slope * own).sum(1), torch.zeros(4, dtype=own.dtype), atol=1e-9, rtol=0)


def test_feature_difference_without_pairs_or_vectors_is_zero() -> None:
    own, others, pairs = random_vectors(2)
    for w, u, which in (
        (own, others, torch.zeros_like(pairs)),
        (own, others[:0], pairs[:, :0]),
        (own[:0], others, pairs[:0]),
    ):
        assert feature_difference(w, u, which).item() == 0
        assert torch.equal(slope_of(lambda x, u=u, p=which: feature_difference(x, u, p), w), torch.zeros_like(w))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_feature_difference_of_zero_and_half_precision_vectors(dtype: torch.dtype) -> None:
    own, others, pairs = (x.to(dtype) if x.is_floating_point() else x | True for x in random_vectors(3))
    own[1], others[1] = 0, 0
    own[2] *= 1e-8  # a subnormal of float16, or zero
    loss = feature_difference(own, others, pairs)
    assert loss.dtype == torch.float32 and 0 < loss < 1
    slope = slope_of(lambda w: feature_difference(w, others, pairs), own)
    assert slope.dtype == dtype and slope.isfinite().all() and slope[0].any()
    assert torch.equal(slope[1:3], torch.zeros_like(slope[1:3]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(feature_difference(own, others, pairs), loss)


def test_unit() -> None:
    found = unit(torch.tensor([[3.0, 0.0, 1e-7], [4.0, 0.0, 0.0]]), 0)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.0, 0.0], [0.8, 0.0, 0.0]]))


# All of them.


def test_all_keep_the_contract_of_losses() -> None:
    rng = np.random.default_rng(0)
    features, labels = (
        torch.from_numpy(rng.normal(0, 1, (2, 3, 2, 5))),
        torch.from_numpy(rng.integers(-1, 3, (2, 1, 2, 5))),
    )
    nested = torch.cat([labels >= 0, labels >= 1], 1)
    keeps_the_contract(lambda h: vectors_of_labels(h, labels, 3)[0].square(), features)
    keeps_the_contract(lambda h: organ_vectors(h, nested)[0].square(), features)
    own, others, pairs = random_vectors(5)
    keeps_the_contract(lambda w: feature_difference(w, others, pairs, margin=-0.2), own)


def test_nothing_waits_for_the_device() -> None:
    """Tensors without data: whatever reads a value or depends on one in Python raises."""
    with FakeTensorMode():
        features, labels = torch.randn(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 1, 4, 4)
        vectors, valid = vectors_of_labels(features, labels, 5)
        pairs = valid.flatten()[:, None] & valid.flatten()
        feature_difference(vectors.flatten(0, 1), vectors.flatten(0, 1), pairs).backward()
        assert features.grad is not None and features.grad.shape == features.shape
