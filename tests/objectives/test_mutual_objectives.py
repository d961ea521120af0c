"""What the objectives of deep mutual learning keep between steps: ramps, means, scores, the collapse alarm."""

from __future__ import annotations

from math import exp
from typing import Any

import pytest
import torch
from partial_oracle import dataset
from prepared import prepare
from torch import Tensor

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.objectives import Batch, Output, Progress
from nnunet_mutual.objectives.collapse import LEAST_SAMPLES, CollapseAlarm
from nnunet_mutual.objectives.full_organs import MOMENTUM, SimilarityObjective, SimilarityStep
from nnunet_mutual.objectives.knowledge import Knowledge
from nnunet_mutual.objectives.organs import organ_masks, ramp
from nnunet_mutual.objectives.partial_organs import BANK_MOMENTUM, DifferenceObjective, PartialLoss, Ramp
from nnunet_mutual.objectives.supervised import SupervisedObjective

CONTENT = dataset({"liver": 1, "spleen": 2}, {"a": {"annotated": ["liver"]}, "b": {"annotated": ["spleen"]}})
GROUPS = [frozenset({"liver"}), frozenset({"spleen"})]
OPTIONS: dict[str, Any] = {"feature_size": 4, "rise": Ramp(0.05, 0.25)}


@pytest.fixture()
def known() -> Knowledge:
    return Knowledge(AnnotationTable.from_dataset_json(CONTENT), ["a", "b"], 3)


def supervised(known: Knowledge) -> SupervisedObjective:
    return SupervisedObjective(known, lambda *_: torch.zeros(()), [1.0], ignore_label=None, batch_dice=False)


def batch_of(known: Knowledge, size: int = 8) -> Batch:
    labels = torch.zeros(2, 1, size, size, size, dtype=torch.long)
    labels[0, :, : size // 2] = 1
    labels[1, :, :, : size // 2] = 2
    patterns = known.patterns(["a", "b"])
    return Batch(torch.zeros(2, 1, size, size, size), [labels], ["a", "b"], patterns, torch.tensor(patterns))


def says(label: Tensor, sure: float = 10.0) -> Tensor:
    """Logits (B, 3, *spatial) of a network that predicts a label map (B, *spatial)."""
    return sure * torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()


def test_the_ramp() -> None:
    values = [ramp(Progress(step, 100), 0.05, 0.25) for step in (0, 4, 5, 15, 25, 99)]
    assert values == pytest.approx([0, 0, exp(-5), exp(-5 / 4), 1, 1])


def test_organs_at_the_resolution_of_features(known: Knowledge) -> None:
    batch = batch_of(known)
    masks = organ_masks(batch, known, torch.Size([4, 4, 4]))
    assert masks.shape == (2, 3, 4, 4, 4)
    assert masks.flatten(2).sum(2).tolist() == [[0, 32, 0], [0, 0, 32]], "background and undrawn labels are no organ"
    assert torch.equal(masks[0, 1], torch.arange(4)[:, None, None].expand(4, 4, 4) < 2)


def test_means_of_organ_features(known: Knowledge) -> None:
    made = DifferenceObjective(
        known, supervised(known), GROUPS, loss=PartialLoss(1.0, 1.0, 1.0, 1.0), form="own", foreground_from=0, **OPTIONS
    )
    batch = batch_of(known)
    logits = says(torch.zeros(2, 8, 8, 8, dtype=torch.long))

    def step(value: float) -> None:
        features = [torch.full((2, 4, 4, 4, 4), value * (n + 1)) for n in range(2)]
        outputs = [Output([logits], {4: f}) for f in features]
        made.update(outputs, prepare(made, outputs, batch, Progress(50, 100)))

    step(1.0)
    assert made.filled.tolist() == [[False, True, False], [False, False, True]], "each network keeps its own organs"
    assert made.bank[0, 1].tolist() == [1.0] * 4 and made.bank[1, 2].tolist() == [2.0] * 4
    step(2.0)
    assert made.bank[0, 1, 0].item() == pytest.approx(BANK_MOMENTUM + (1 - BANK_MOMENTUM) * 2)
    step(float("inf"))
    assert torch.isfinite(made.bank).all(), "a step that overflowed leaves no trace"
    other = DifferenceObjective(
        known, supervised(known), GROUPS, loss=PartialLoss(1.0, 1.0, 1.0, 1.0), form="own", foreground_from=0, **OPTIONS
    )
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.bank, made.bank) and torch.equal(other.filled, made.filled)


def test_running_scores_choose_the_teacher(known: Knowledge) -> None:
    made = SimilarityObjective(known, supervised(known), GROUPS, loss=PartialLoss(1.0, 1.0, 1.0, 1.0), **OPTIONS)
    batch = batch_of(known)
    truth = batch.target[0][:, 0]
    good, bad = says(truth), says(torch.zeros_like(truth))
    features = torch.randn(2, 4, 8, 8, 8)
    outputs = [Output([good], {4: features}), Output([bad], {4: features})]
    made.update(outputs, SimilarityStep(batch, Progress(50, 100), None))
    scores = made.scores
    assert torch.isnan(scores[0, :, 2]).all() and torch.isnan(scores[1, :, 1]).all(), "never drawn there"
    assert scores[0, 0, 1] > 0.95 and scores[0, 1, 1] < 0.05
    made.update([outputs[1], outputs[0]], SimilarityStep(batch, Progress(50, 100), None))
    expected = MOMENTUM * scores[0, 0, 1] + (1 - MOMENTUM) * scores[0, 1, 1]
    assert made.scores[0, 0, 1].item() == pytest.approx(expected.item())
    step = prepare(made, outputs, batch, Progress(50, 100))
    terms = [made.terms(n, outputs, step)["dfs"].value.item() for n in range(2)]
    assert terms[0] == 0, "the better one learns nothing from the worse"
    assert made.diagnose()[0]["soft Dice of liver by network 0 on group 0"] == pytest.approx(expected.item())


def alarm_after(known: Knowledge, share: float, samples: int = LEAST_SAMPLES, weight: float = 0.3) -> CollapseAlarm:
    """Network 0 predicts its liver in half of its own images and in ``share`` of that in the others."""
    alarm = CollapseAlarm(known, GROUPS, 2)
    batch = batch_of(known)
    for _ in range(samples):
        predicted = torch.zeros(2, 8, 8, 8, dtype=torch.long)
        predicted[0, :4] = 1
        predicted[1].view(-1)[: int(256 * share)] = 1
        spleen = torch.full((2, 8, 8, 8), 2)
        alarm.count([Output([says(predicted)]), Output([says(spleen)])], batch, [0, 1], weight)
    return alarm


def test_the_alarm_stops_the_rise_of_pd(known: Knowledge) -> None:
    alarm = alarm_after(known, 0.25)
    numbers, warnings = alarm.diagnose()
    assert numbers["volume of liver by network 0 on group 1 against its own"] == pytest.approx(0.25)
    assert numbers["volume of spleen by network 1 on group 0 against its own"] == pytest.approx(1)
    assert len(warnings) == 1 and "network 0 predicts 0.25 times as much liver" in warnings[0]
    assert alarm.capped(1.0) == 0.3 and alarm.capped(0.1) == 0.1
    other = CollapseAlarm(known, GROUPS, 2)
    other.load_state_dict(alarm.state_dict())
    assert other.capped(1.0) == 0.3


def test_no_alarm_without_cause_or_before_enough_was_seen(known: Knowledge) -> None:
    assert alarm_after(known, 0.75).diagnose()[1] == []
    early = alarm_after(known, 0.0, LEAST_SAMPLES - 1)
    assert early.diagnose() == ({}, []) and early.capped(1.0) == 1.0
    assert min(early.samples) == LEAST_SAMPLES - 1, "what was counted stays until it is enough"


def test_pd_is_not_stopped_for_what_was_before_it(known: Knowledge) -> None:
    alarm = alarm_after(known, 0.25, weight=0.0)
    assert alarm.diagnose()[1] == [] and alarm.capped(1.0) == 1.0


def test_patches_with_forced_foreground_do_not_count(known: Knowledge) -> None:
    alarm = CollapseAlarm(known, GROUPS, 1)
    batch = batch_of(known)
    alarm.count([Output([says(batch.target[0][:, 0])])] * 2, batch, [0, 1], 0.3)
    assert alarm.samples == [1, 0]
