"""Labels that count less than drawn ones: by hand, against loops over voxels, and free where all count the same."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from partial_oracle import SMOOTH, annotated_names, dataset, knowledge_of, possible_names, region_state
from torch import Tensor

from nnunet_mutual.annotation.codes import PseudoCodes
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.batch import Batch, mixed
from nnunet_mutual.losses.partial import partial_sigmoid_loss, partial_softmax_loss
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.supervised import SupervisedObjective

WEIGHTS: dict[str, dict[str, float]] = {"both": {"spleen": 0.25}, "spleen": {"spleen": 0.25}, "liver": {}}


def with_outlines(content: dict[str, Any], weights: dict[str, dict[str, float]]) -> dict[str, Any]:
    for key, own in weights.items():
        content["mutual"]["cases"][key]["outlined"] = {label: {"weight": weight} for label, weight in own.items()}
    return content


PLAIN = with_outlines(
    dataset(
        {"liver": 1, "spleen": 2},
        {
            "both": {"annotated": ["liver", "spleen"]},
            "spleen": {"annotated": ["spleen"]},
            "liver": {"annotated": ["liver"]},
        },
    ),
    WEIGHTS,
)
REGIONS = with_outlines(
    dataset(
        {"whole": [1, 2], "core": [2]}, {"both": {"annotated": ["whole", "core"]}, "core": {"annotated": ["core"]}}
    ),
    {"both": {"core": 0.5}, "core": {"core": 0.25}},
)


def softmax_loss_of(logits: Tensor, target: Tensor, keys: list[str], **options: Any) -> Tensor:
    known = knowledge_of(PLAIN, keys)
    tables, index = known.tables, known.patterns(keys)
    assert tables.possible is not None and tables.weights is not None
    return partial_softmax_loss(
        logits, target, tables.possible[index], tables.annotated[index], weights=tables.weights[index], **options
    )


def weight_at(key: str, name: str) -> float:
    """Of a voxel with this label; background is said by all annotated labels, so it counts as their mean does."""
    own = {label: WEIGHTS[key].get(label, 1.0) for label in annotated_names(PLAIN, key)}
    return own[name] if name in own else sum(own.values()) / len(own)


def slow_softmax_loss(logits: Tensor, target: Tensor, keys: list[str], batch_dice: bool) -> float:
    names = {0: "background", 1: "liver", 2: "spleen"}
    surprise, voxels = 0.0, 0
    sums: dict[tuple[Any, str], list[float]] = {}
    counts: dict[tuple[Any, str], list[float]] = {}
    for sample, key in enumerate(keys):
        for place in np.ndindex(*logits.shape[2:]):
            p = logits[(sample, slice(None), *place)].double().softmax(0)
            drawn = names[int(target[(sample, 0, *place)])]
            of_set = sum(float(p[value]) for value, name in names.items() if name in possible_names(PLAIN, key, drawn))
            surprise -= weight_at(key, drawn) * math.log(of_set)
            voxels += 1
            for b in annotated_names(PLAIN, key):
                group = (None if batch_dice else sample, b)
                q = of_set if drawn == b else float(p[PLAIN["labels"][b]])
                found = (q * (drawn == b), q, float(drawn == b))
                sums[group] = [s + f for s, f in zip(sums.get(group, [0, 0, 0]), found, strict=True)]
        for b in annotated_names(PLAIN, key):
            counts.setdefault((None if batch_dice else sample, b), []).append(weight_at(key, b))
    dice = [
        np.mean(counts[group]) * (2 * both + SMOOTH) / (predicted + reference + SMOOTH)
        for group, (both, predicted, reference) in sums.items()
    ]
    return surprise / voxels - float(np.mean(dice))


def random_batch(keys: list[str]) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(len(keys))
    allowed = {"both": [0, 1, 2], "spleen": [0, 2], "liver": [0, 1]}
    target = np.stack([rng.choice(allowed[key], (1, 3, 4)) for key in keys])
    return torch.from_numpy(rng.normal(0, 2, (len(keys), 3, 3, 4))).float(), torch.from_numpy(target)


def test_values_by_hand() -> None:
    # Uniform probabilities of 1/3; drawn: liver, spleen, nothing. Weights 1, 1/4, and for nothing the mean 5/8.
    logits, target = torch.zeros(1, 3, 1, 3), torch.tensor([1, 2, 0])[None, None, None]
    cross_entropy = (1 + 0.25 + 0.625) * math.log(3) / 3
    dice = (1 + 0.25) * (2 * (1 / 3) / (1 + 1)) / 2  # of each label: overlap 1/3, predicted 1, drawn 1
    assert softmax_loss_of(logits, target, ["both"]).item() == pytest.approx(cross_entropy - dice, abs=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_equals_a_slow_loop(batch_dice: bool) -> None:
    keys = ["both", "liver", "spleen", "both"]
    logits, target = random_batch(keys)
    found = softmax_loss_of(logits, target, keys, batch_dice=batch_dice)
    assert found.item() == pytest.approx(slow_softmax_loss(logits, target, keys, batch_dice), abs=1e-5)


def test_regions_equal_a_slow_loop() -> None:
    keys, names = ["both", "core"], ["whole", "core"]
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 2, (2, 2, 3, 4))).float()
    core = torch.from_numpy(rng.random((2, 3, 4)) < 0.4)
    target = torch.stack([core | torch.from_numpy(rng.random((2, 3, 4)) < 0.4), core], 1)
    target[1, 0] = core[1]  # what a reader of the core draws says no more of the whole
    known = knowledge_of(REGIONS, keys)
    tables, index = known.tables, known.patterns(keys)
    assert tables.relations is not None and tables.weights is not None
    found = partial_sigmoid_loss(
        logits, target, tables.relations[index], tables.annotated[index], weights=tables.weights[index]
    )
    weights = {("both", "whole"): 1.0, ("both", "core"): 0.5, ("core", "core"): 0.25, ("core", "whole"): 0.25}
    surprise, number, dice = 0.0, 0, []
    for sample, key in enumerate(keys):
        for channel, name in enumerate(names):
            p = logits[sample, channel].double().sigmoid()
            for place in np.ndindex(3, 4):
                drawn = {n: bool(target[(sample, c, *place)]) for c, n in enumerate(names)}
                state = region_state(REGIONS, annotated_names(REGIONS, key), drawn, name)
                if state is not None:
                    surprise -= weights[key, name] * math.log(float(p[place] if state else 1 - p[place]))
                    number += 1
            if name in annotated_names(REGIONS, key):
                y = target[sample, channel].double()
                overlap = 2 * (p * y).sum() + SMOOTH
                dice.append(weights[key, name] * float(overlap / (p.sum() + y.sum() + SMOOTH)))
    assert found.item() == pytest.approx(surprise / number - float(np.mean(dice)), abs=1e-5)


def test_mixed_samples_carry_the_weights_of_their_origin() -> None:
    keys = ["both", "liver"]
    logits, target = random_batch(keys)
    swap = torch.tensor([1, 0])[:, None, None, None].expand(-1, 1, 3, 4)
    found = softmax_loss_of(logits, target, keys, mix=partial(mixed, origin=swap))
    assert found.item() == pytest.approx(softmax_loss_of(logits, target.flip(0), keys[::-1]).item(), abs=1e-5)
    half = torch.zeros(2, 1, 3, 4, dtype=torch.long)  # liver's sample shows the other one in its first row
    half[1, :, 1:] = 1
    known = knowledge_of(PLAIN, keys)
    tables, index = known.tables, known.patterns(keys)
    assert tables.possible is not None and tables.weights is not None
    parts = tables.possible[index], tables.annotated[index]
    whole = partial_softmax_loss(logits, target, *parts, mix=partial(mixed, origin=half), smooth=1e12)
    scaled = partial_softmax_loss(
        logits, target, *parts, mix=partial(mixed, origin=half), smooth=1e12, weights=torch.full((2, 3), 0.5)
    )
    assert scaled.item() == pytest.approx(whole.item() / 2, abs=1e-5)


def test_accepted_pseudo_labels_count_as_the_setting_says_and_drawn_ones_in_full() -> None:
    content = dataset({"liver": 1, "spleen": 2}, {"liver": {"annotated": ["liver"]}})
    table = AnnotationTable.from_dataset_json(content)
    codes = PseudoCodes.from_table(table)
    known = Knowledge(table, ["liver"], 3, codes, {"liver": frozenset(["spleen"])}, weight=0.5)
    assert known.tables.weights is None
    assert known.pseudo_tables.weights is not None
    assert known.pseudo_tables.weights.tolist() == [[0.75, 1.0, 0.5]]
    assert Knowledge(table, ["liver"], 3, codes, {"liver": frozenset(["spleen"])}).pseudo_tables.weights is None
    target = torch.tensor([int(codes.encode(np.array([y]), np.array([z]))[0]) for y, z in [(1, -1), (0, 2), (0, 0)]])
    tables = known.pseudo_tables
    assert tables.possible is not None and tables.drawn is not None
    loss = partial_softmax_loss(
        torch.zeros(1, 3, 3),
        target[None, None],
        tables.possible,
        tables.annotated,
        drawn=tables.drawn,
        weights=tables.weights,
        smooth=1e12,
    )
    assert loss.item() == pytest.approx((1 + 0.5 + 0.75) * math.log(3) / 3 - (1 + 0.5) / 2, abs=1e-5)


def test_what_a_person_drew_in_part_counts_in_full_beside_an_outline_of_a_tool() -> None:
    sources = {"part": {"annotated": ["liver"], "incomplete": ["spleen"]}, "all": {"annotated": ["liver", "spleen"]}}
    content = with_outlines(dataset({"liver": 1, "spleen": 2}, sources), {"part": {"liver": 0.5}})
    known = knowledge_of(content, ["part", "all"])
    assert known.tables.weights is not None
    assert known.tables.weights[known.patterns(["part", "all"])].tolist() == [[0.5, 0.5, 1.0], [1.0, 1.0, 1.0]]


def test_any_other_weight_than_1_leaves_the_shortcut_and_1_keeps_it() -> None:
    everything = {"all": {"annotated": ["liver", "spleen"]}}
    logits, target = torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.long)
    for weight, stock in ((1.0, True), (0.5, False)):
        content = with_outlines(dataset({"liver": 1, "spleen": 2}, everything), {"all": {"spleen": weight}})
        known = knowledge_of(content, ["all"])
        objective: Any = SupervisedObjective(
            known, lambda outputs, targets: torch.tensor(123.0), [1.0], ignore_label=None, batch_dice=False
        )
        index = known.patterns(["all"])
        batch = Batch(logits, [target], ["all"], index, torch.tensor(index))
        assert (objective.loss([logits], batch).item() == 123.0) is stock
        assert (known.tables.weights is None) is stock
