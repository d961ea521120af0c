"""InfoNCE of sampled voxels, their positives and negatives, and running centroids."""

from __future__ import annotations

import math

import pytest
import torch
from loss_contract import keeps_the_contract

from nnunet_mutual.losses.contrast import draw_negatives, info_nce, softened_positives
from nnunet_mutual.modules.centroids import ClassCentroids
from nnunet_mutual.objectives.sampling import any_of, at_voxels


def random(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


def test_info_nce_by_hand() -> None:
    anchors = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    positives, negatives = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 3.0], [-1.0, 0.0], [1.0, 0.0]]])
    usable, counted = torch.tensor([[True, True, False]]), torch.tensor([[True, True]])
    e = math.exp
    first = -math.log(e(2) / (e(2) + e(0) + e(-2)))
    second = -math.log(e(0) / (e(0) + e(2) + e(0)))
    found = info_nce(anchors, positives, negatives, usable, counted, temperature=0.5)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-6)
    only = info_nce(anchors, positives, negatives, usable, torch.tensor([[False, True]]), temperature=0.5)
    assert only.item() == pytest.approx(second, rel=1e-6)


def test_info_nce_keeps_the_contract_of_losses() -> None:
    rest = random(3, 6), random(3, 5, 6), torch.rand(3, 5) > 0.3, torch.ones(3, 4, dtype=torch.bool)
    keeps_the_contract(
        lambda a: info_nce(a, *rest, temperature=0.5),
        random(3, 4, 6),
    )


def test_classes_that_are_absent_change_nothing_and_give_no_nan() -> None:
    anchors = random(3, 4, 6).requires_grad_()
    positives, negatives = random(3, 6), random(3, 5, 6)
    positives[1] = 0
    usable = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    counted = torch.tensor([[True] * 4, [False] * 4, [True, False, True, True]])
    loss = info_nce(anchors, positives, negatives, usable, counted, temperature=0.5)
    loss.backward()
    assert anchors.grad is not None and anchors.grad.isfinite().all()
    assert torch.equal(anchors.grad.abs().sum(2) > 0, counted)
    nothing = info_nce(anchors, positives, negatives, usable & False, counted & False, temperature=0.5)
    assert nothing.item() == 0


def test_positives_are_softened_by_known_centroids() -> None:
    means, centroids = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[[0.0, 1.0], [0.0, 0.0]]] * 2)
    found = softened_positives(means, centroids, torch.tensor([True, False]), 0.8)
    length = math.hypot(1, 0.4)
    torch.testing.assert_close(found, torch.tensor([[1 / length, 0.4 / length], [0.0, 1.0]]))


def test_negatives_are_of_other_classes_and_rather_of_those_alike() -> None:
    torch.manual_seed(0)
    means = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [0.0, 1.0]])
    present = torch.tensor([True, True, True, False])
    drawn = draw_negatives(means, present, pool=10, number=4000, temperature=0.5)
    assert drawn.shape == (4, 4000) and drawn.min() >= 0 and drawn.max() < 40
    counts = torch.stack([torch.bincount(row // 10, minlength=4) for row in drawn]).float() / 4000
    assert not counts.diagonal()[:3].any() and not counts[:, 3].any()
    unit = means / means.norm(dim=1, keepdim=True)
    alike = (unit[0] @ unit.T)[[1, 2]] / 0.5
    torch.testing.assert_close(counts[0, [1, 2]], alike.softmax(0), atol=0.02, rtol=0)
    assert len((drawn[0] % 10).unique()) == 10
    alone = draw_negatives(means, torch.tensor([True, False, False, False]), pool=10, number=50, temperature=0.5)
    assert ((alone >= 0) & (alone < 40)).all()


def test_centroids_by_hand() -> None:
    centroids = ClassCentroids(2, 2, 2, momentum=0.5, device=torch.device("cpu"))
    centroids.filled[:] = True
    centroids.vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    vectors = torch.tensor([[[3.0, 0.3], [0.8, 0.6], [0.0, -1.0]], [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    centroids.update(vectors, torch.tensor([[True, True, False], [False, False, False]]))
    a = torch.tensor([3.0, 0.3]) / math.hypot(3, 0.3)
    moved = 0.5 * torch.tensor([1.0, 0.0]) + 0.5 * (a + torch.tensor([0.8, 0.6])) / 2
    torch.testing.assert_close(centroids.vectors[0, 0], moved / moved.norm())
    torch.testing.assert_close(centroids.vectors[0, 1], torch.tensor([0.0, 1.0]))  # nobody's nearest
    torch.testing.assert_close(centroids.vectors[1], torch.eye(2))


def test_centroids_begin_at_vectors_and_forget_overflows() -> None:
    torch.manual_seed(0)
    centroids = ClassCentroids(3, 4, 5, momentum=0.9, device=torch.device("cpu"))
    vectors = torch.randn(3, 8, 5)
    usable = torch.ones(3, 8, dtype=torch.bool)
    usable[2] = False
    vectors[0, 3] = torch.inf
    centroids.update(vectors, usable)
    assert centroids.filled.tolist() == [True, True, False]
    assert centroids.vectors.isfinite().all() and not centroids.vectors[2].any()
    torch.testing.assert_close(centroids.vectors[:2].norm(dim=2), torch.ones(2, 4))
    other = ClassCentroids(3, 4, 5, momentum=0.9, device=torch.device("cpu"))
    other.load_state_dict(centroids.state_dict())
    assert torch.equal(other.vectors, centroids.vectors) and torch.equal(other.filled, centroids.filled)


def test_voxels_are_drawn_among_the_eligible_ones() -> None:
    eligible = torch.zeros(3, 50, dtype=torch.bool)
    eligible[0, ::2], eligible[1, 7] = True, True
    chosen, counts = any_of(eligible, 20)
    assert counts.sum(1).tolist() == [20, 1, 0]
    assert len(chosen[0].unique()) == 20 and (chosen[0] % 2 == 0).all() and chosen[1][counts[1]].tolist() == [7]
    assert not torch.equal(any_of(eligible, 20)[0], chosen)


def test_features_of_voxels_and_their_gradient() -> None:
    """Those of indexing, without the copies of the map that its backward pass makes."""
    features = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    sample, voxel = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[7, 0], [119, 119]])  # one voxel twice
    found, expected = at_voxels(features, sample, voxel), features.flatten(2)[sample, :, voxel]
    assert found.shape == (2, 2, 3) and torch.equal(found, expected)
    weights = torch.randn(2, 2, 3, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((x * weights).sum(), features)[0] for x in (found, expected))
    torch.testing.assert_close(mine, theirs)
