"""The tri-state loss of regions: what an annotated region says about the others, and the loss over what is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from partial_oracle import dataset, knowledge_of, region_state, sigmoid_loss
from torch import Tensor

from nnunet_mutual.losses.partial import partial_sigmoid_loss

NESTED = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
DISJOINT = {"left": [1, 2], "right": [3, 4], "middle": 5}
OVERLAPPING = {"everything": [1, 2, 3, 4], "front": [1, 2], "centre": [2, 3], "back": [3, 4]}
FAMILIES = [NESTED, DISJOINT, OVERLAPPING]


def regions(
    labels: dict[str, Any], *annotated: tuple[str, ...], in_part: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[str]]:
    """A dataset with one case per annotated set, and its cases; what is not annotated may be drawn in part."""
    sources = {
        f"s{i}": {"annotated": list(names), "incomplete": [name for name in in_part if name not in names]}
        for i, names in enumerate(annotated)
    }
    return dataset(labels, sources), list(sources)


def loss_of(logits: Tensor, target: Tensor, content: dict[str, Any], keys: list[str], **options: Any) -> Tensor:
    known = knowledge_of(content, keys)
    index = torch.tensor(known.patterns(keys))
    assert known.tables.relations is not None
    options["incomplete"] = None if known.tables.incomplete is None else known.tables.incomplete[index]
    return partial_sigmoid_loss(logits, target, known.tables.relations[index], known.tables.annotated[index], **options)


def gradient(logits: Tensor, *args: Any, **options: Any) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    loss_of(leaf, *args, **options).backward()
    assert leaf.grad is not None
    return leaf.grad


def drawn(labels: dict[str, Any], annotated: tuple[str, ...], voxels: list[int]) -> Tensor:
    """(1, R, 1, voxels): what a reader draws who looks for the annotated regions only; integers are the truth."""
    rows = [
        [name in annotated and value in np.atleast_1d(integers) for value in voxels]
        for name, integers in labels.items()
    ]
    return torch.tensor(rows)[None, :, None]


def states(
    labels: dict[str, Any], annotated: tuple[str, ...], target: Tensor, in_part: tuple[str, ...] = ()
) -> list[list[str]]:
    """Per region and voxel '+' (present), '-' (absent) or '?' (unknown), from the gradient at logits of 0."""
    content, keys = regions(labels, annotated, in_part=in_part)
    # A huge smoothing term silences the Dice, which sees annotated regions only.
    slope = gradient(torch.zeros(target.shape), target, content, keys, smooth=1e12)[0, :, 0]
    return [["-" if s > 0 else "+" if s < 0 else "?" for s in row] for row in slope.tolist()]


def test_nested_regions() -> None:
    voxels = [0, 1, 2, 3]
    whole = states(NESTED, ("whole",), drawn(NESTED, ("whole",), voxels))
    assert whole == [["-", "+", "+", "+"], ["-", "?", "?", "?"], ["-", "?", "?", "?"]]
    core = states(NESTED, ("core",), drawn(NESTED, ("core",), voxels))
    assert core == [["?", "?", "+", "+"], ["-", "-", "+", "+"], ["-", "-", "?", "?"]]
    enhancing = states(NESTED, ("enhancing",), drawn(NESTED, ("enhancing",), voxels))
    assert enhancing == [["?", "?", "?", "+"], ["?", "?", "?", "+"], ["-", "-", "-", "+"]]


def test_disjoint_regions_exclude_each_other() -> None:
    left = states(DISJOINT, ("left",), drawn(DISJOINT, ("left",), [0, 1, 3, 5]))
    assert left == [["-", "+", "-", "-"], ["?", "-", "?", "?"], ["?", "-", "?", "?"]]


def test_a_region_drawn_in_part_is_present_where_it_is_drawn_and_says_nothing_elsewhere() -> None:
    core = states(NESTED, (), drawn(NESTED, ("core",), [0, 1, 2, 3]), ("core",))
    assert core == [["?", "?", "+", "+"], ["?", "?", "+", "+"], ["?", "?", "?", "?"]]
    within = states(NESTED, ("whole",), drawn(NESTED, ("whole", "core"), [0, 1, 2, 3]), ("core",))
    assert within == [["-", "+", "+", "+"], ["-", "?", "+", "+"], ["-", "?", "?", "?"]]
    left = states(DISJOINT, (), drawn(DISJOINT, ("left",), [1, 3]), ("left",))
    assert left == [["+", "?"], ["-", "?"], ["-", "?"]]


def test_partly_overlapping_regions_say_nothing_about_each_other() -> None:
    front = states(OVERLAPPING, ("front",), drawn(OVERLAPPING, ("front",), [0, 2]))
    #        everything, front, centre, back
    assert front == [["?", "+"], ["-", "+"], ["?", "?"], ["?", "-"]]


def test_a_contradiction_is_unknown() -> None:
    # Enhancing drawn outside the whole tumour: is the core there?
    target = torch.tensor([False, False, True]).reshape(1, 3, 1, 1)
    assert states(NESTED, ("whole", "enhancing"), target) == [["-"], ["?"], ["+"]]


@pytest.mark.parametrize("labels", FAMILIES)
def test_what_is_known_is_true(labels: dict[str, Any]) -> None:
    names = tuple(labels)
    voxels = list(range(6))
    for chosen in range(1, 2 ** len(names)):
        annotated = tuple(name for i, name in enumerate(names) if chosen >> i & 1)
        found = states(labels, annotated, drawn(labels, annotated, voxels))
        for name, row in zip(names, found, strict=True):
            for value, state in zip(voxels, row, strict=True):
                truth = "+" if value in np.atleast_1d(labels[name]) else "-"
                assert state == truth or (state == "?" and name not in annotated)


def test_values_by_hand() -> None:
    # Logits of 0. The whole tumour is drawn on the first of two voxels; the others are known (absent) on the second.
    content, keys = regions(NESTED, ("whole",))
    target = drawn(NESTED, ("whole",), [1, 0])
    dice = 2 * 0.5 / (1 + 1)
    found = loss_of(torch.zeros(1, 3, 1, 2), target, content, keys)
    assert found.item() == pytest.approx(math.log(2) - dice, abs=1e-5)
    # Confident and right where known, confident and wrong where nobody knows: only the known ones count.
    logits = torch.tensor([[20.0, -20.0], [20.0, -20.0], [-20.0, -20.0]])[None, :, None]
    assert loss_of(logits, target, content, keys).item() == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("has_ignore", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 2)])
@pytest.mark.parametrize("labels", FAMILIES)
def test_equals_loops_over_voxels(
    labels: dict[str, Any], shape: tuple[int, ...], has_ignore: bool, batch_dice: bool
) -> None:
    rng = np.random.default_rng([len(labels), len(shape), has_ignore, batch_dice])
    for _ in range(3):
        sets = [tuple(name for name in labels if rng.random() < 0.5) for _ in range(3)]
        content, keys = regions(labels, *sets, in_part=tuple(name for name in labels if rng.random() < 0.4))
        # Random targets contradict themselves here and there.
        target = torch.from_numpy(rng.random((3, len(labels) + has_ignore, *shape)) < 0.5)
        logits = torch.from_numpy(rng.normal(0, 2, (3, len(labels), *shape))).requires_grad_()
        options: dict[str, Any] = {"has_ignore": has_ignore, "batch_dice": batch_dice}
        cross_entropy, dice = sigmoid_loss(logits, target, content, keys, **options)
        expected = cross_entropy - dice
        if not isinstance(expected, Tensor):
            continue
        (slope,) = torch.autograd.grad(expected, logits)
        found = loss_of(logits.float(), target, content, keys, **options)
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)
        torch.testing.assert_close(
            gradient(logits.float(), target, content, keys, **options).double(), slope, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("has_ignore", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_with_everything_annotated_it_is_nnunets_loss(
    shape: tuple[int, ...], has_ignore: bool, batch_dice: bool
) -> None:
    stock = DC_and_BCE_loss(
        {},
        {"batch_dice": batch_dice, "do_bg": True, "smooth": 1e-5, "ddp": False},
        use_ignore_label=has_ignore,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    content, keys = regions(NESTED, tuple(NESTED), tuple(NESTED))
    generator = torch.Generator().manual_seed(0)
    target = torch.rand((2, 3 + has_ignore, *shape), generator=generator) < 0.4
    leaf = torch.randn((2, 3, *shape), generator=generator).requires_grad_()
    expected = stock(leaf, target)
    expected.backward()
    options: dict[str, Any] = {"has_ignore": has_ignore, "batch_dice": batch_dice}
    logits = leaf.detach()
    torch.testing.assert_close(loss_of(logits, target, content, keys, **options), expected.detach())
    slope = gradient(logits, target, content, keys, **options)
    torch.testing.assert_close(slope, leaf.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_ignored_voxels_and_unlabelled_samples_get_no_gradient(batch_dice: bool) -> None:
    content, keys = regions(NESTED, ("whole",), ())
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 3, 4, 4), generator=generator)
    target = torch.rand((2, 4, 4, 4), generator=generator) < 0.5
    target[:, 3] = False
    target[:, 3, 1] = True
    options: dict[str, Any] = {"has_ignore": True, "batch_dice": batch_dice}
    slope = gradient(logits, target, content, keys, **options)
    assert torch.equal(slope[:, :, 1], torch.zeros(2, 3, 4)) and torch.equal(slope[1], torch.zeros(3, 4, 4))
    assert (slope[0, 0, [0, 2, 3]] != 0).all()
    alone = loss_of(logits[:1], target[:1], content, keys[:1], **options)
    torch.testing.assert_close(loss_of(logits, target, content, keys, **options), alone)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_nothing_annotated_is_zero_with_zero_gradient(batch_dice: bool) -> None:
    content, keys = regions(NESTED, ())
    logits = torch.randn(1, 3, 2, 2)
    target = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    assert loss_of(logits, target, content, keys, batch_dice=batch_dice).item() == 0
    assert torch.equal(gradient(logits, target, content, keys, batch_dice=batch_dice), torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_and_half_precision_logits_are_finite(dtype: torch.dtype) -> None:
    content, keys = regions(OVERLAPPING, ("front",), ("everything", "back"))
    target = torch.rand(2, 4, 3, 3) < 0.5
    logits = (1e4 * torch.randn(2, 4, 3, 3).sign()).to(dtype)
    assert loss_of(logits, target, content, keys).isfinite()
    assert gradient(logits, target, content, keys).isfinite().all()


def test_autocast_changes_nothing() -> None:
    content, keys = regions(OVERLAPPING, ("front", "centre"), ("everything",))
    target, logits = torch.rand(2, 4, 3, 3) < 0.5, torch.randn(2, 4, 3, 3)
    plain = loss_of(logits, target, content, keys)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(logits, target, content, keys), plain)


def test_the_oracle_says_what_the_method_says() -> None:
    content, _ = regions(NESTED, ("core",))
    assert region_state(content, {"core"}, {"core": True}, "whole") is True
    assert region_state(content, {"core"}, {"core": False}, "enhancing") is False
    assert region_state(content, {"core"}, {"core": True}, "enhancing") is None


def test_beside_what_is_drawn_of_a_region_it_is_absent() -> None:
    content, keys = regions(OVERLAPPING, (), in_part=("front",))
    target = drawn(OVERLAPPING, ("front",), [1, 0, 0, 4])
    logits = torch.zeros(1, 4, 1, 4)
    front = list(OVERLAPPING).index("front")
    found = [gradient(logits, target, content, keys, margin=m)[0, :, 0] for m in (0, 1)]
    assert found[0][front].sign().tolist() == [-1, 0, 0, 0] and found[1][front].sign().tolist() == [-1, 1, 0, 0]
    others = [row for row in range(4) if row != front]
    assert torch.equal(found[0][others], found[1][others])
