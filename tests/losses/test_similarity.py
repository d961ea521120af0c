"""Feature similarity and who teaches whom: by hand, against loops, gradients, and what they must leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_contract import keeps_the_contract
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_mutual.losses.difference import class_masks
from nnunet_mutual.losses.similarity import (
    feature_similarity,
    soft_dice_per_class,
    soft_dice_per_region,
    teaching_weights,
)

SHAPES = [(3, 4), (2, 2, 3)]
HALF = [torch.float16, torch.bfloat16]


def taught_by_labels(student: Tensor, teacher: Tensor, labels: Tensor, omega: Tensor) -> Tensor:
    """Masks of a label map; values that are no class belong to none."""
    return feature_similarity(student, teacher, class_masks(labels, omega.shape[-1]), omega)


# Feature similarity.


def taught_distance(student: np.ndarray, teacher: np.ndarray, masks: np.ndarray, omega: np.ndarray) -> float:
    """Sum over classes of the weighted distances over the number of taught voxels."""
    total = 0.0
    for a in range(masks.shape[1]):
        distances, voxels = 0.0, 0
        for sample in range(len(student)):
            if not omega[sample, a] > 0:
                continue
            for voxel in np.ndindex(*student.shape[2:]):
                if not masks[(sample, a, *voxel)]:
                    continue
                h, t = (x[(sample, slice(None), *voxel)] for x in (student, teacher))
                lengths = math.sqrt((h**2).sum() * (t**2).sum())
                distances += omega[sample, a] * (1 - ((h * t).sum() / lengths if lengths else 0.0))
                voxels += 1
        total += distances / max(1, voxels)
    return total


def random_features(seed: int, shape: tuple[int, ...] = (3, 4)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of student and teacher, labels with values that are no class, weights of four classes."""
    rng = np.random.default_rng([seed, len(shape)])
    student, teacher = rng.normal(0, 1, (2, 3, 5, *shape))
    labels = rng.choice([-1, 0, 1, 2, 3, 9], (3, 1, *shape))
    omega = rng.random((3, 4)) * (rng.random((3, 4)) < 0.6)
    omega[0, 2] = 0.5
    labels[(0, 0, *(0,) * len(shape))] = 2
    return torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(labels), torch.from_numpy(omega)


def masks_of(labels: Tensor, classes: int = 4) -> Tensor:
    return torch.cat([labels == a for a in range(classes)], 1)


def slope_of(student: Tensor, teacher: Tensor, labels: Tensor, omega: Tensor) -> Tensor:
    leaf = student.detach().clone().requires_grad_()
    taught_by_labels(leaf, teacher, labels, omega).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_by_hand() -> None:
    # Cosines 1, 0, -1 and 1/sqrt(2), all of class 1 but the last, which is of class 2.
    student = torch.tensor([[1.0, 0.0, -2.0, 3.0], [0.0, 7.0, 0.0, 3.0]])[None, :, None]
    teacher = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]])[None, :, None]
    labels = torch.tensor([1, 1, 1, 2])[None, None, None]

    def loss(*omega: float) -> float:
        return taught_by_labels(student, teacher, labels, torch.tensor([omega])).item()

    assert loss(0, 1, 0) == pytest.approx((0 + 1 + 2) / 3)
    assert loss(0, 0.5, 0) == pytest.approx(0.5)
    assert loss(0, 0.5, 1) == pytest.approx(0.5 + 1 - math.sqrt(0.5))
    assert loss(1, 0, 0) == 0


def test_samples_that_are_not_taught_do_not_dilute() -> None:
    student, teacher, _, _ = random_features(0)
    labels = torch.ones(3, 1, 3, 4)
    omega = torch.tensor([[0.0, 0.7], [0.0, 0.0], [0.0, 0.0]])
    alone = taught_by_labels(student[:1], teacher[:1], labels[:1], omega[:1])
    torch.testing.assert_close(taught_by_labels(student, teacher, labels, omega), alone)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_loops(shape: tuple[int, ...]) -> None:
    for seed in range(4):
        student, teacher, labels, omega = random_features(seed, shape)
        if seed == 3:
            student[0, :, 0], teacher[1, :, 1] = 0, 0
        arrays = student.numpy(), teacher.numpy(), masks_of(labels).numpy(), omega.numpy()
        expected = taught_distance(*arrays)
        assert expected > 0.1
        found = taught_by_labels(student, teacher, labels, omega)
        assert found.dtype == torch.float64 and found.item() == pytest.approx(expected, rel=1e-10)
        single = taught_by_labels(student.float(), teacher.float(), labels.float(), omega.float())
        assert single.dtype == torch.float32 and single.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_regions_equal_loops_and_may_overlap(shape: tuple[int, ...]) -> None:
    student, teacher, _, omega = random_features(5, shape)
    masks = np.random.default_rng(5).random((3, 4, *shape)) < 0.5
    expected = taught_distance(student.numpy(), teacher.numpy(), masks, omega.numpy())
    for drawn in (torch.from_numpy(masks), torch.from_numpy(masks).float()):
        found = feature_similarity(student, teacher, drawn, omega)
        assert found.item() == pytest.approx(expected, rel=1e-10)
    labels = random_features(5, shape)[2]
    plain = taught_by_labels(student, teacher, labels, omega)
    assert torch.equal(feature_similarity(student, teacher, masks_of(labels), omega), plain)


def test_weights_may_be_common_to_all_samples() -> None:
    student, teacher, labels, omega = random_features(6)
    common = torch.tensor([0.0, 0.3, 1.0, 0.0])
    expected = taught_by_labels(student, teacher, labels, common.expand_as(omega))
    assert expected > 0
    torch.testing.assert_close(taught_by_labels(student, teacher, labels, common), expected)


def test_only_the_student_learns_and_only_where_it_is_taught() -> None:
    student, teacher, labels, omega = random_features(7)
    teacher.requires_grad_()
    omega.requires_grad_()
    leaf = student.clone().requires_grad_()
    loss = taught_by_labels(leaf, teacher, labels, omega)
    loss.backward()
    assert teacher.grad is None and omega.grad is None and leaf.grad is not None
    for sample, *voxel in np.ndindex(3, 3, 4):
        label = int(labels[(sample, 0, *voxel)])
        taught = 0 <= label < 4 and bool(omega[sample, label] > 0)
        assert leaf.grad[(sample, slice(None), *voxel)].any() == taught
    stepped = student - 0.1 * leaf.grad
    assert taught_by_labels(stepped, teacher, labels, omega) < loss


def test_both_keep_the_contract_of_losses() -> None:
    student, teacher, labels, omega = random_features(8, (2, 2))
    keeps_the_contract(lambda h: taught_by_labels(h, teacher, labels, omega), student)
    nested = torch.cat([labels >= 0, labels >= 1], 1)
    keeps_the_contract(lambda h: feature_similarity(h, teacher, nested, omega[:, 2:]), student)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), order=st.permutations(range(3)))
def test_directions_only_in_any_order(seed: int, scale: float, order: list[int]) -> None:
    student, teacher, labels, omega = random_features(seed)
    plain = taught_by_labels(student, teacher, labels, omega)
    torch.testing.assert_close(taught_by_labels(scale * student, teacher / scale, labels, omega), plain)
    torch.testing.assert_close(taught_by_labels(student[order], teacher[order], labels[order], omega[order]), plain)
    assert taught_by_labels(teacher, 2 * teacher, labels, omega).item() == pytest.approx(0, abs=1e-12)


def test_nothing_taught_is_zero_with_zero_gradient() -> None:
    student, teacher, labels, omega = random_features(9)
    for drawn, weights in ((labels, 0 * omega), (0 * labels + 9, omega), (0 * labels - 1, omega)):
        assert taught_by_labels(student, teacher, drawn, weights).item() == 0
        assert torch.equal(slope_of(student, teacher, drawn, weights), torch.zeros_like(student))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_zero_and_half_precision_vectors(dtype: torch.dtype) -> None:
    student, teacher, labels, omega = random_features(10)
    omega[:] = 1
    labels[:] = 1
    student, teacher = student.to(dtype), teacher.to(dtype)
    student[0, :, 0], teacher[1, :, 0] = 0, 0
    student[2, :, 0] *= 1e-8  # a subnormal of float16, or zero
    loss = taught_by_labels(student, teacher, labels, omega)
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert torch.equal(loss, taught_by_labels(student.float(), teacher.float(), labels, omega))
    slope = slope_of(student, teacher, labels, omega)
    assert slope.dtype == dtype and slope.isfinite().all() and slope[:, :, 1:].any()
    assert torch.equal(slope[:, :, 0], torch.zeros_like(slope[:, :, 0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(taught_by_labels(student, teacher, labels, omega), loss)


# Who teaches whom.


def lessons(scores: np.ndarray, gap: float, full: float) -> tuple[np.ndarray, np.ndarray]:
    """Best network and weights of (P, K) scores, class by class."""
    best, omega = np.zeros(scores.shape[1], int), np.zeros_like(scores)
    for a, column in enumerate(scores.T):
        measured = [k for k, r in enumerate(column) if not math.isnan(r)]
        if measured:
            best[a] = max(measured, key=lambda k: column[k])
        for n in measured:
            lead = column[best[a]] - column[n]
            if len(measured) > 1 and lead > gap:
                omega[n, a] = min(1, lead / full)
    return best, omega


def test_teaching_weights_by_hand() -> None:
    nan = math.nan
    scores = torch.tensor([[0.90, 0.50, nan, nan, 0.80], [0.85, 0.90, 0.70, nan, 0.79], [nan, 0.95, nan, nan, 0.80]])
    best, omega = teaching_weights(scores)
    assert best.tolist() == [0, 2, 1, 0, 0]
    expected = torch.tensor([[0.0, 1, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.0, 0, 0, 0, 0]])
    torch.testing.assert_close(omega, expected, atol=1e-5, rtol=0)
    assert teaching_weights(scores, gap=0.06)[1][:, :2].tolist() == [[0, 1], [0, 0], [0, 0]]
    torch.testing.assert_close(teaching_weights(scores, full=1.0)[1][0, 1].item(), 0.45, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), networks=st.integers(1, 4), gap=st.floats(0, 0.3), full=st.floats(0.05, 1))
def test_teaching_weights_equal_loops(seed: int, networks: int, gap: float, full: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((2, networks, 5))
    scores[rng.random(scores.shape) < 0.4] = math.nan
    best, omega = teaching_weights(torch.from_numpy(scores), gap=gap, full=full)
    assert best.shape == (2, 5) and best.dtype == torch.int64 and omega.shape == scores.shape
    for i, found in enumerate(scores):
        expected_best, expected = lessons(found, gap, full)
        np.testing.assert_array_equal(best[i], expected_best)
        np.testing.assert_allclose(omega[i], expected, atol=1e-12)
    # The teacher does not learn from itself.
    assert not torch.gather(omega, 1, best[:, None]).any()


# Soft Dice.


def overlap(p: np.ndarray, drawn: np.ndarray) -> float:
    return 2 * float((p * drawn).sum()) / float(p.sum() + drawn.sum())


def random_case(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng([seed, len(shape)])
    target = rng.integers(0, 4, (3, 1, *shape))
    target[0][target[0] == 3] = 1
    annotated = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    logits = rng.normal(0, 2, (3, 4, *shape))
    return torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(annotated)


@pytest.mark.parametrize("ignore_label", [None, 4, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_dice_per_class_equals_loops(shape: tuple[int, ...], ignore_label: int | None) -> None:
    logits, target, annotated = random_case(1, shape)
    if ignore_label is not None:
        target[:, :, 0] = ignore_label
    found = soft_dice_per_class(logits, target, annotated, ignore_label=ignore_label)
    assert found.dtype == torch.float64
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    for sample, b in np.ndindex(3, 4):
        y = target[sample, 0].numpy()
        counted = y != (99 if ignore_label is None else ignore_label)
        if b == 0 or not annotated[sample, b] or not (y[counted] == b).any():
            assert found[sample, b].isnan()
        else:
            assert found[sample, b].item() == pytest.approx(overlap(p[sample, b][counted], y[counted] == b), rel=1e-10)
    assert found[1].isfinite().any() and found[:, 0].isnan().all() and found[0, 3].isnan() and found[2].isnan().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_per_class_sums_over_what_a_voxel_may_be(shape: tuple[int, ...]) -> None:
    logits, target, annotated = random_case(2, shape)
    rng = np.random.default_rng(2)
    possible = torch.from_numpy((rng.random((3, 4, 4)) < 0.3) | np.eye(4, dtype=bool))
    target[1, :, 0] = 4  # has no row in the table
    found = soft_dice_per_class(logits, target, annotated, possible=possible, ignore_label=4)
    # An ignore label needs no row in the table.
    ignored = torch.where(target == 4, 99, target)
    again = soft_dice_per_class(logits, ignored, annotated, possible=possible, ignore_label=99)
    assert torch.equal(again.nan_to_num(-1), found.nan_to_num(-1))
    p = logits.softmax(1)
    for sample, b in ((0, 1), (0, 2), (1, 2), (1, 3)):
        q, drawn = [], []
        for voxel in np.ndindex(*shape):
            y = int(target[(sample, 0, *voxel)])
            if y != 4:
                here = p[(sample, slice(None), *voxel)]
                q.append(float(here[possible[sample, y]].sum() if y == b else here[b]))
                drawn.append(y == b)
        assert found[sample, b].item() == pytest.approx(overlap(np.array(q), np.array(drawn)), rel=1e-10)
    identity = torch.eye(4, dtype=torch.bool).expand(3, 4, 4)
    same = soft_dice_per_class(logits, target, annotated, possible=identity, ignore_label=4)
    plain = soft_dice_per_class(logits, target, annotated, ignore_label=4)
    torch.testing.assert_close(same, plain, equal_nan=True)
    assert not torch.allclose(found, plain, equal_nan=True)


@pytest.mark.parametrize("has_ignore", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dice_per_region_equals_loops(shape: tuple[int, ...], has_ignore: bool) -> None:
    rng = np.random.default_rng([3, len(shape)])
    logits, target = rng.normal(0, 2, (3, 3, *shape)), rng.random((3, 3 + has_ignore, *shape)) < 0.5
    target[0, 1] = False
    annotated = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
    for drawn in (torch.from_numpy(target), torch.from_numpy(target).float()):
        found = soft_dice_per_region(
            torch.from_numpy(logits), drawn, torch.from_numpy(annotated), has_ignore=has_ignore
        )
        assert found.isnan().tolist() == [[False, True, True], [False, True, False], [True, True, True]]
        for sample, region in zip(*np.nonzero(~found.isnan().numpy()), strict=True):
            counted = ~target[sample, 3] if has_ignore else np.ones(shape, bool)
            p = 1 / (1 + np.exp(-logits[sample, region][counted]))
            expected = overlap(p, target[sample, region][counted])
            assert found[sample, region].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", HALF)
def test_dice_of_half_precision_logits_without_gradient(dtype: torch.dtype) -> None:
    logits, target, annotated = random_case(4, (3, 4))
    half = logits.to(dtype).requires_grad_()
    regions = torch.cat([target == a for a in range(4)], 1)
    for measure, drawn in ((soft_dice_per_class, target), (soft_dice_per_region, regions)):
        found = measure(half, drawn, annotated)
        assert found.dtype == torch.float32 and not found.requires_grad
        assert torch.equal(found.nan_to_num(-1), measure(half.float(), drawn, annotated).nan_to_num(-1))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(found.nan_to_num(-1), measure(half, drawn, annotated).nan_to_num(-1))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_a_better_prediction_scores_higher(seed: int) -> None:
    logits, target, annotated = random_case(seed, (3, 4))
    truth = torch.cat([target == a for a in range(4)], 1)
    scores = [soft_dice_per_class(logits + gain * truth, target, annotated) for gain in (0, 1, 50)]
    measured = ~scores[0].isnan()
    assert ((scores[0] < scores[1]) & (scores[1] < scores[2]))[measured].all() and measured.any()
    torch.testing.assert_close(scores[2][measured], torch.ones_like(scores[2][measured]))


def test_nothing_waits_for_the_device() -> None:
    """Tensors without data: whatever reads a value or depends on one in Python raises."""
    with FakeTensorMode():
        student, labels = torch.randn(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 1, 4, 4)
        annotated, possible = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, 3, dtype=torch.bool)
        of_class = soft_dice_per_class(student, labels, annotated, possible=possible, ignore_label=3)
        of_region = soft_dice_per_region(student, torch.zeros(2, 4, 4, 4), annotated, has_ignore=True)
        best, omega = teaching_weights(torch.stack([of_class, of_region], 1))
        assert best.shape == (2, 3)
        total = sum(taught_by_labels(student, torch.randn(2, 3, 4, 4), labels, weights) for weights in omega.unbind(1))
        assert isinstance(total, Tensor)
        total.backward()
        assert student.grad is not None and student.grad.shape == student.shape
