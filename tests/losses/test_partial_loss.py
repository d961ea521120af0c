"""The tri-state loss of plain labels: by hand, against loops over voxels, against nnU-Net, and its promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from partial_oracle import dataset, knowledge_of, softmax_loss
from torch import Tensor

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.losses.partial import (
    allowed_classes,
    beside,
    partial_softmax_loss,
    set_log_probability,
    supervised_dice,
)
from nnunet_mutual.objectives.knowledge import Knowledge

THREE = {"liver": 1, "tumour": 2, "spleen": 3}
ORGANS = dataset(
    THREE,
    {
        "all": {"annotated": ["liver", "tumour", "spleen"]},
        "liver": {"annotated": ["liver"]},
        "whole_liver": {"annotated": ["liver"], "contains": {"liver": ["tumour"]}},
        "spleen": {"annotated": ["spleen"]},
        "none": {"annotated": []},
        "some_tumours": {"annotated": ["liver"], "incomplete": ["tumour"]},
    },
)


def loss_of(
    logits: Tensor, target: Tensor, keys: list[str], content: dict[str, Any] = ORGANS, **options: Any
) -> Tensor:
    known = knowledge_of(content, keys)
    index = known.patterns(keys)
    assert known.tables.possible is not None
    options["incomplete"] = None if known.tables.incomplete is None else known.tables.incomplete[index]
    return partial_softmax_loss(logits, target, known.tables.possible[index], known.tables.annotated[index], **options)


def gradient(logits: Tensor, target: Tensor, keys: list[str], *args: Any, **options: Any) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    loss_of(leaf, target, keys, *args, **options).backward()
    assert leaf.grad is not None
    return leaf.grad


def line(*labels: int) -> Tensor:
    """One sample, a row of voxels."""
    return torch.tensor(labels)[None, None, None]


def random_batch(seed: int, keys: list[str], shape: tuple[int, ...] = (3, 4)) -> tuple[Tensor, Tensor]:
    """Logits and a target that holds what each case annotates."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (len(keys), 4, *shape))
    allowed = {"all": [0, 1, 2, 3], "liver": [0, 1], "whole_liver": [0, 1], "spleen": [0, 3], "none": [0]}
    target = np.stack([rng.choice(allowed[key], (1, *shape)) for key in keys])
    return torch.from_numpy(logits).float(), torch.from_numpy(target)


def test_values_by_hand() -> None:
    # Uniform probabilities of 1/4. Drawn: liver, then "none of my labels".
    logits = torch.zeros(1, 4, 1, 2)
    # liver: S = {liver}; nothing: S = {background, tumour, spleen}. Dice: overlap 1/4, predicted 1/2, drawn 1.
    expected = (math.log(4) + math.log(4 / 3)) / 2 - 2 * 0.25 / 1.5
    assert loss_of(logits, line(1, 0), ["liver"]).item() == pytest.approx(expected, abs=1e-5)
    # liver with its tumour: S = {liver, tumour}; nothing: S = {background, spleen}. Dice: overlap 1/2, predicted 3/4.
    expected = (math.log(2) + math.log(2)) / 2 - 2 * 0.5 / 1.75
    assert loss_of(logits, line(1, 0), ["whole_liver"]).item() == pytest.approx(expected, abs=1e-5)
    # Everything annotated: cross-entropy log 4; Dice 1/3 of the liver and about 0 of the absent tumour and spleen.
    expected = math.log(4) - (2 * 0.25 / 1.5) / 3
    assert loss_of(logits, line(1, 0), ["all"]).item() == pytest.approx(expected, abs=2e-5)


def test_a_label_drawn_in_part_by_hand() -> None:
    # Uniform probabilities of 1/4. Drawn: liver, one of the tumours, and nothing, where a tumour or a spleen may be.
    logits = torch.zeros(1, 4, 1, 3)
    # Dice of the liver alone: overlap 1/4, predicted 3/4, drawn 1; a missed tumour is only in the cross-entropy.
    expected = (math.log(4) + math.log(4) + math.log(4 / 3)) / 3 - 2 * 0.25 / 1.75
    assert loss_of(logits, line(1, 2, 0), ["some_tumours"]).item() == pytest.approx(expected, abs=1e-5)
    # A tumour found where nobody drew one costs nothing, at one that is drawn its absence does.
    sure = torch.zeros(1, 4, 1, 1)
    sure[0, 2] = 30.0
    assert loss_of(sure, line(0), ["some_tumours"], smooth=1e12).item() == pytest.approx(-1, abs=1e-5)
    missed = torch.zeros(1, 4, 1, 1)
    missed[0, 2] = -30.0
    assert loss_of(missed, line(2), ["some_tumours"], smooth=1e12).item() > 25


def test_a_label_ends_beside_what_somebody_drew_and_not_beside_what_was_decided() -> None:
    """A row of 12 voxels: drawn at 9, decided as tumour at 3 and 10, as nothing at 0; the rest is undecided."""
    content = dataset({"liver": 1, "tumour": 2}, {"some": {"annotated": ["liver"], "incomplete": ["tumour"]}})
    table = AnnotationTable.from_dataset_json(content)
    codes = PseudoCodes.from_table(table)
    code = dict(zip(codes.pairs, range(codes.offset, codes.size), strict=True))
    known = Knowledge(table, ["some"], 3, codes, {"some": frozenset({"tumour"})})
    row = torch.zeros(12, dtype=torch.long)
    row[0], row[3], row[9], row[10] = code[0, 0], code[0, 2], 2, code[0, 2]
    tables, index = known.pseudo_tables, known.patterns(["some"])
    assert tables is not None and tables.possible is not None and tables.incomplete is not None
    options = {"incomplete": tables.incomplete[index], "drawn": tables.drawn, "by_hand": tables.by_hand}
    allowed = allowed_classes(row[None, None, None], tables.possible[index], margin=2, **options)
    assert allowed[0, 2, 0].int().tolist() == [0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0]
    assert allowed.any(1).all()


def test_a_drawn_voxel_weighs_as_much_in_a_case_that_draws_only_a_part() -> None:
    """Where anything is possible a voxel says nothing and counts, as one of a complete case does."""
    content = dataset(THREE, {"all": {"annotated": [*THREE]}, "some": {"annotated": [], "incomplete": ["tumour"]}})
    logits, target = torch.zeros(1, 4, 1, 4), line(0, 0, 0, 2)
    of_some = gradient(logits, target, ["some"], content, smooth=1e12)[..., 3]
    torch.testing.assert_close(of_some, gradient(logits, target, ["all"], content, smooth=1e12)[..., 3])
    assert of_some.flatten().tolist() == pytest.approx([1 / 16, 1 / 16, -3 / 16, 1 / 16])


def test_beside_what_is_drawn_of_a_part_the_label_is_absent() -> None:
    content = dataset(THREE, {"some": {"annotated": [], "incomplete": ["tumour", "spleen"]}})
    logits, target = torch.zeros(1, 4, 1, 6), line(2, 0, 0, 0, 3, 0)
    without, found = (gradient(logits, target, ["some"], content, smooth=1e12, margin=m)[0, :, 0] for m in (0, 1))
    torch.testing.assert_close(found[:, [0, 2, 4]], without[:, [0, 2, 4]])  # drawn, or too far from it
    no_tumour, no_spleen = [-1 / 12, -1 / 12, 0.25, -1 / 12], [-1 / 12, -1 / 12, -1 / 12, 0.25]
    torch.testing.assert_close(found[:, [1, 3, 5]] * 6, torch.tensor([no_tumour, no_spleen, no_spleen]).T)
    # Of complete labels nothing changes, and of the next slice nothing is known.
    assert torch.equal(*(loss_of(logits, line(1, 0, 0, 0, 0, 0), ["liver"], margin=m) for m in (0, 2)))
    drawn = torch.zeros(1, 1, 3, 5, 5, dtype=torch.bool)
    drawn[0, 0, 1, 2, 2] = True
    near = beside(drawn, 1)[0, 0]
    assert not near[[0, 2]].any() and near[1].sum() == 8 and near[1, 1:4, 1:4].sum() == 8


def test_gradient_by_hand() -> None:
    # d(-log p(S)) / dz_k = p_k - [k in S] p_k / p(S), here without the Dice: a huge smoothing term makes it constant.
    on_liver = gradient(torch.zeros(1, 4, 1, 1), line(1), ["liver"], smooth=1e12).flatten()
    torch.testing.assert_close(on_liver, torch.tensor([0.25, -0.75, 0.25, 0.25]))
    elsewhere = gradient(torch.zeros(1, 4, 1, 1), line(0), ["liver"], smooth=1e12).flatten()
    torch.testing.assert_close(elsewhere, torch.tensor([-1 / 12, 0.25, -1 / 12, -1 / 12]))


def random_dataset(rng: np.random.Generator, samples: int) -> dict[str, Any]:
    """Random annotated sets (empty and full ones too), nested ``contains`` and overlaps."""
    names = ["e", "b", "d", "a"]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    sources = {}
    for sample in range(samples):
        contains: dict[str, list[str]] = {}
        for outer, inner in pairs:
            if rng.random() < 0.25:
                contains.setdefault(outer, []).append(inner)
        annotated = [name for name in names if rng.random() < rng.choice([0.3, 0.6])]
        in_part = [name for name in names if name not in annotated and rng.random() < 0.4]
        sources[f"s{sample}"] = {"annotated": annotated, "incomplete": in_part, "contains": contains}
    overlaps = [list(pair) for pair in pairs if rng.random() < 0.2]
    values = rng.permutation(np.arange(1, 5)).tolist()
    return dataset(dict(zip(names, values, strict=True)), sources, may_overlap=overlaps)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_loops_over_voxels(seed: int, shape: tuple[int, ...], ignore: bool, batch_dice: bool) -> None:
    rng = np.random.default_rng([seed, len(shape), ignore, batch_dice])
    content = random_dataset(rng, 3)
    ignore_label = 5 if ignore else None
    content["labels"] |= {"ignore": 5} if ignore else {}
    keys = list(content["mutual"]["sources"])
    target = np.zeros((3, 1, *shape), np.int16)
    for sample, key in enumerate(keys):
        source = content["mutual"]["sources"][key]
        drawable = [content["labels"][name] for name in source["annotated"] + source["incomplete"]]
        target[sample] = rng.choice([0, *drawable, *([5] if ignore else [])], (1, *shape))
    logits = torch.from_numpy(rng.normal(0, 2, (3, 5, *shape))).requires_grad_()
    options: dict[str, Any] = {"ignore_label": ignore_label, "batch_dice": batch_dice}
    cross_entropy, dice = softmax_loss(logits, torch.from_numpy(target), content, keys, **options)
    expected = cross_entropy - dice
    (slope,) = torch.autograd.grad(expected, logits)
    found = loss_of(logits.detach().float(), torch.from_numpy(target), keys, content, **options)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    found_slope = gradient(logits.float(), torch.from_numpy(target), keys, content, **options)
    torch.testing.assert_close(found_slope.double(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore_label", [None, 4])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_with_everything_annotated_it_is_nnunets_loss(
    shape: tuple[int, ...], ignore_label: int | None, batch_dice: bool
) -> None:
    stock = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        ignore_label=ignore_label,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    logits, target = random_batch(7, ["all", "all"], shape)
    if ignore_label is not None:
        target[0, 0, :2] = ignore_label
    leaf = logits.clone().requires_grad_()
    expected = stock(leaf, target.float())
    expected.backward()
    options: dict[str, Any] = {"ignore_label": ignore_label, "batch_dice": batch_dice}
    torch.testing.assert_close(loss_of(logits, target, ["all", "all"], **options), expected.detach())
    torch.testing.assert_close(gradient(logits, target, ["all", "all"], **options), leaf.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_nothing_annotated_is_zero_with_zero_gradient(batch_dice: bool) -> None:
    logits, target = random_batch(1, ["none", "none"])
    assert loss_of(logits, target, ["none", "none"], batch_dice=batch_dice).item() == 0
    assert torch.equal(gradient(logits, target, ["none", "none"], batch_dice=batch_dice), torch.zeros_like(logits))


@pytest.mark.parametrize("batch_dice", [False, True])
def test_an_unlabelled_sample_changes_nothing_for_the_others(batch_dice: bool) -> None:
    keys = ["liver", "none", "spleen"]
    logits, target = random_batch(2, keys)
    without = [0, 2]
    few = [keys[i] for i in without]
    both = loss_of(logits, target, keys, batch_dice=batch_dice)
    torch.testing.assert_close(both, loss_of(logits[without], target[without], few, batch_dice=batch_dice))
    slope = gradient(logits, target, keys, batch_dice=batch_dice)
    torch.testing.assert_close(slope[without], gradient(logits[without], target[without], few, batch_dice=batch_dice))
    assert torch.equal(slope[1], torch.zeros_like(slope[1]))


def test_another_organ_here_speaks_against_the_unannotated_ones() -> None:
    logits, _ = random_batch(3, ["liver"], (1, 3))
    on_organ = gradient(logits, line(1, 1, 1), ["liver"])[0, :, 0]
    assert (on_organ[2:] > 0).all() and (on_organ[1] < 0).all()


def test_outside_the_drawn_organs_unannotated_ones_are_as_good_as_background() -> None:
    logits, _ = random_batch(4, ["liver"], (1, 3))
    slope = gradient(logits, line(0, 0, 0), ["liver"])[0, :, 0]
    assert (slope[1] > 0).all() and (slope[[0, 2, 3]] < 0).all()
    # Only the sum of the three counts: moving probability between them changes nothing.
    moved = torch.log_softmax(logits, 1).exp()
    moved[:, [0, 2, 3]] = moved[:, [3, 0, 2]]
    same = loss_of(moved.log(), line(0, 0, 0), ["liver"])
    torch.testing.assert_close(same, loss_of(logits, line(0, 0, 0), ["liver"]))


def test_a_liver_drawn_with_its_tumour_does_not_push_the_tumour_down() -> None:
    logits, _ = random_batch(5, ["liver"], (1, 4))
    target = line(1, 1, 1, 1)
    assert (gradient(logits, target, ["whole_liver"])[0, 2] < 0).all()
    assert (gradient(logits, target, ["liver"])[0, 2] > 0).all()
    # Outside the liver there is no tumour of it either.
    assert (gradient(logits, line(0, 0, 0, 0), ["whole_liver"])[0, 2] > 0).all()


def test_annotated_but_absent_is_pushed_down() -> None:
    logits, _ = random_batch(6, ["all"], (1, 4))
    assert (gradient(logits, line(0, 0, 0, 0), ["all"])[0, 1:] > 0).all()


@pytest.mark.parametrize("batch_dice", [False, True])
def test_ignored_voxels_get_no_gradient_and_do_not_matter(batch_dice: bool) -> None:
    keys = ["liver", "whole_liver", "none"]
    logits, target = random_batch(8, keys)
    target[:, :, 1] = 4
    options: dict[str, Any] = {"ignore_label": 4, "batch_dice": batch_dice}
    slope = gradient(logits, target, keys, **options)
    assert torch.equal(slope[:, :, 1], torch.zeros_like(slope[:, :, 1])) and (slope[0, :, 0] != 0).all()
    other = logits.clone()
    other[:, :, 1] += 5 * torch.randn_like(other[:, :, 1])
    assert torch.equal(loss_of(other, target, keys, **options), loss_of(logits, target, keys, **options))
    kept = [0, 2]
    small = loss_of(logits[:, :, kept], target[:, :, kept], keys, **options)
    torch.testing.assert_close(small, loss_of(logits, target, keys, **options))


def test_a_wholly_ignored_batch_is_finite_and_flat() -> None:
    logits, target = random_batch(9, ["liver", "spleen"])
    target[:] = 4
    assert loss_of(logits, target, ["liver", "spleen"], ignore_label=4).isfinite()
    assert torch.equal(gradient(logits, target, ["liver", "spleen"], ignore_label=4), torch.zeros_like(logits))


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000), batch_dice=st.booleans())
def test_samples_may_come_in_any_order(order: list[int], seed: int, batch_dice: bool) -> None:
    keys = ["liver", "whole_liver", "all", "none"]
    logits, target = random_batch(seed, keys)
    mixed = [keys[i] for i in order]
    again = loss_of(logits[order], target[order], mixed, batch_dice=batch_dice)
    torch.testing.assert_close(again, loss_of(logits, target, keys, batch_dice=batch_dice))
    slope = gradient(logits[order], target[order], mixed, batch_dice=batch_dice)
    torch.testing.assert_close(slope, gradient(logits, target, keys, batch_dice=batch_dice)[order])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    keys = ["liver", "whole_liver"]
    logits, target = random_batch(10, keys)
    half = logits.to(dtype)
    found = loss_of(half, target, keys)
    assert found.dtype == torch.float32 and torch.equal(found, loss_of(half.float(), target, keys))
    slope = gradient(half, target, keys)
    assert slope.dtype == dtype
    torch.testing.assert_close(slope.float(), gradient(half.float(), target, keys), rtol=1e-2, atol=1e-4)


def test_autocast_changes_nothing() -> None:
    keys = ["liver", "all"]
    logits, target = random_batch(11, keys)
    plain = loss_of(logits, target, keys, batch_dice=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(logits, target, keys, batch_dice=True), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("keys", [["liver", "all"], ["whole_liver", "none"]])
def test_extreme_logits_are_finite(keys: list[str], dtype: torch.dtype) -> None:
    logits, target = random_batch(12, keys)
    extreme = (1e4 * logits.sign()).to(dtype)
    assert loss_of(extreme, target, keys).isfinite()
    assert gradient(extreme, target, keys).isfinite().all()


def test_set_log_probability() -> None:
    logits = torch.tensor([0.0, math.log(2), math.log(5)]).reshape(1, 3, 1, 1)
    allowed = torch.tensor([True, False, True]).reshape(1, 3, 1, 1)
    of_set, log_p = set_log_probability(logits, allowed)
    assert of_set.shape == (1, 1, 1) and of_set.item() == pytest.approx(math.log(6 / 8))
    torch.testing.assert_close(log_p.exp().flatten(), torch.tensor([1 / 8, 2 / 8, 5 / 8]))
    everything, _ = set_log_probability(logits, torch.ones_like(allowed))
    assert everything.item() == pytest.approx(0, abs=1e-6)


def test_a_label_without_annotation_is_no_perfect_score() -> None:
    overlap, predicted, drawn = torch.tensor([[2.0, 0.0]]), torch.tensor([[4.0, 9.0]]), torch.tensor([[4.0, 0.0]])
    for batch_dice in (False, True):
        only_first = supervised_dice(overlap, predicted, drawn, torch.tensor([[True, False]]), batch_dice, 0.0)
        assert only_first.item() == pytest.approx(0.5)
        both = supervised_dice(overlap, predicted, drawn, torch.tensor([[True, True]]), batch_dice, 0.0)
        assert both.item() == pytest.approx(0.25)
