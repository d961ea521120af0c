"""A setting that another one switches off is refused, not passed over."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nnunet_mutual.errors import MutualError
from nnunet_mutual.settings import Settings, deep_merge, read_settings
from nnunet_mutual.trainers.mean_teacher import MeanTeacherSettings
from nnunet_mutual.trainers.mutual_correlation import MutualCorrelationSettings
from nnunet_mutual.trainers.mutual_cross_modal import MutualCrossModalSettings
from nnunet_mutual.trainers.mutual_partial import MutualPartialSettings
from nnunet_mutual.trainers.mutual_prototype import MutualPrototypeSettings
from nnunet_mutual.trainers.soft_label import SoftLabelSettings
from nnunet_mutual.trainers.taught_partial import TaughtPartialSettings

GIVEN = {"pseudo_labels": {"given": True}}
UNUSED: list[tuple[type[Settings], dict[str, Any], str]] = [
    (MeanTeacherSettings, {"ema": 0.9, "ema_age": 0.1}, '"ema" has no effect with ema_age=0.1'),
    (TaughtPartialSettings, {"unlabelled_foreground_epochs": 5}, "has no effect with this trainer"),
    (MutualCrossModalSettings, {"unlabelled_foreground": 0.5}, "has no effect with this trainer"),
    (
        SoftLabelSettings,
        {"unlabelled_foreground": 0.5},
        '"unlabelled_foreground" has no effect with this trainer',
    ),
    (MutualCorrelationSettings, {"own_views": False}, '"own_views" has no effect with form="partner"'),
    (MutualCorrelationSettings, {"form": "crossed", "ema": 0.9}, '"ema" has no effect with ema_age=0.1'),
    (MutualCorrelationSettings, {"second": "equal", "dropout": 0.2}, '"dropout" has no effect without a network with'),
    (MutualCorrelationSettings, {"form": "alternating", "second": "equal"}, '"second" has no effect with form="altern'),
    (MutualPrototypeSettings, {"role": "filter", "confidence": 0.7}, '"confidence" has no effect with role="filter"'),
    (MutualPrototypeSettings, {"soft_loss": "sample"}, '"soft_loss" has no effect with role="rectify"'),
    (MutualPrototypeSettings, {"strong_pose": True}, '"strong_pose" has no effect with role="rectify"'),
    (MutualCorrelationSettings, {"strong_pose": True}, '"strong_pose" has no effect with form="partner"'),
    (
        MutualCorrelationSettings,
        {"published": True, "loss": {"correlation": 0.0}},
        '"loss" has no effect with published',
    ),
    (MutualCorrelationSettings, {"published": True, "temperature": 1.0}, '"temperature" has no effect with published'),
    (MutualCorrelationSettings, {"published": True, "dropout": 0.3}, '"dropout" has no effect with published=true'),
    (MutualPrototypeSettings, {"published": True, "loss": {"contrast": 0.0}}, '"loss" has no effect with published'),
    (MutualPrototypeSettings, {"published": True, "confidence": 0.99}, '"confidence" has no effect with published'),
    (MutualCrossModalSettings, {"form": "contrast", "published": True, "queue": 5}, '"queue" has no effect with pub'),
    (MutualCrossModalSettings, {"loss": {"contrast": 0.0}}, '"loss" has no effect with form="averages" .it'),
    (MutualPrototypeSettings, {"role": "filter", "loss": {"contrast": 0.5}}, '"loss.contrast" has no effect with role'),
    (MutualCorrelationSettings, {"form": "alternating", "loss": {"correlation": 0.5}}, '"loss.correlation" has no eff'),
    (MeanTeacherSettings, {"unlabelled_foreground_epochs": 5}, "has no effect with unlabelled_foreground=0"),
    (TaughtPartialSettings, {"teachers": "crossed"}, '"teachers" has no effect with one network'),
    (TaughtPartialSettings, {"weight": 0.0, "sure": 0.5}, '"sure" has no effect with weight=0'),
    (MutualPartialSettings, {"loss": {"pd": 0.5}}, '"loss.pd" has no effect with stage1_networks="one"'),
    (MutualPartialSettings, {"stage1_networks": "groups", "loss": {"ps": 0.5}}, '"loss.ps" has no effect with stage2'),
    (MutualPartialSettings, {"stage2_networks": "groups", "fd_form": "own"}, '"fd_form" has no effect with stage1'),
    (MutualPartialSettings, {"ramp": {"end": 0.5}}, '"ramp" has no effect with one network in each stage'),
    (MutualPartialSettings, {"stage1_networks": "groups", **GIVEN}, '"stage1_networks" has no effect with pseudo_lab'),
    (MutualPartialSettings, {"stage1_share": 0.2, **GIVEN}, '"stage1_share" has no effect with pseudo_labels.given'),
    (
        MutualPartialSettings,
        {"ema": 0.9, "pseudo_labels": {"given": True, "rectify": True}},
        '"pseudo_labels.rectify" has no effect with pseudo_labels.given=true',
    ),
]
USED: list[tuple[type[Settings], dict[str, Any]]] = [
    (MutualCorrelationSettings, {"published": True, "dropout": 0.1}),
    (MutualCorrelationSettings, {"ema": 0.9}),
    (MeanTeacherSettings, {"unlabelled_foreground_epochs": 5, "unlabelled_foreground": 0.5}),
    (MutualCorrelationSettings, {"form": "crossed", "ema": 0.9, "ema_age": None, "dropout": 0.2, "own_views": False}),
    (MutualPrototypeSettings, {"role": "filter", "soft_loss": "sample", "confidence": 0.8}),  # the default says nothing
    (TaughtPartialSettings, {"networks": 2, "teachers": "crossed", "sure": 0.5}),
    (MutualPartialSettings, {"stage1_networks": "groups", "fd_form": "own", "stage1_share": 0.2}),
]
USED_IN_GROUPS: dict[str, dict[str, Any]] = {
    "stage1_networks": {"loss": {"pd": 0.5, "ps": 1.0}, "ramp": {"end": 0.5}},  # the default of ps says nothing
    "stage2_networks": {"loss": {"dfs": 0.5}, "ramp": {"end": 0.5}, **GIVEN},
}


@pytest.mark.parametrize(("settings", "block", "words"), UNUSED)
def test_what_has_no_effect_is_refused(settings: type[Settings], block: dict[str, Any], words: str) -> None:
    with pytest.raises(MutualError, match=words) as raised:
        read_settings(settings, block)
    assert str(raised.value).endswith("leave it out")


@pytest.mark.parametrize(("settings", "block"), USED)
def test_what_has_an_effect_is_read(settings: type[Settings], block: dict[str, Any]) -> None:
    read = read_settings(settings, block)
    assert {name: getattr(read, name) for name in block} == block


@pytest.mark.parametrize("stage", USED_IN_GROUPS)
def test_what_has_an_effect_on_groups_is_read(stage: str) -> None:
    block = {stage: "groups", **USED_IN_GROUPS[stage]}
    read = dataclasses.asdict(read_settings(MutualPartialSettings, block))
    assert deep_merge(read, block) == read
