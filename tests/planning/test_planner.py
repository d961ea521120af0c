"""Planners: nnU-Net's own plans for one network, and plans that fit the GPU for several."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from planned import BRAIN, KEYS, PROSTATE, make_raw, plan, read_plans
from tiny import NAME, PLAIN

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.unlabelled_streams import StreamSizes
from nnunet_mutual.errors import MutualError
from nnunet_mutual.planners import MutualPlanner, MutualPlannerResEncL, MutualPlannerResEncM, MutualPlannerResEncXL
from nnunet_mutual.planning.budget import GIB
from nnunet_mutual.planning.configuration import new_configuration
from nnunet_mutual.planning.memory import Design, footprint
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.planning.shape import Shape
from nnunet_mutual.settings import block_for, merged_block
from nnunet_mutual.trainers import (
    MutualCorrelationTrainer,
    MutualCrossModalTrainer,
    PartialTrainer,
    SoftLabelTrainer,
    TaughtPartialTrainer,
)
from nnunet_mutual.trainers.mutual_correlation import MutualCorrelationSettings
from nnunet_mutual.trainers.taught_partial import TaughtPartialSettings

CORRELATION = "MutualCorrelationTrainer"
GROUPS = {"T1": ["T1"], "FLAIR": ["FLAIR"]}
ALL = ["liver", "tumour", "spleen"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planner fails with 0


def block(annotated: Mapping[str, list[str]] | None = None, **more: Any) -> dict[str, Any]:
    annotated = annotated or dict.fromkeys(KEYS, ALL)
    cases = {key: {"source": "a", "annotated": labels} for key, labels in annotated.items()}
    return {"version": 1, "sources": {"a": {"annotated": ALL}}, "cases": cases, **more}


def comparable(plans: dict[str, Any]) -> dict[str, Any]:
    """Plans without names."""
    plans = {key: value for key, value in plans.items() if key not in ("plans_name", "experiment_planner_used")}
    for configuration in plans["configurations"].values():
        configuration.pop("data_identifier", None)
    return plans


def for_(trainer: str, planner: Any = MutualPlanner, **settings: Any) -> Any:
    return partial(planner, trainer=trainer, settings=settings)


SLOW = pytest.mark.slow
PAIRS: dict[str, Any] = {
    "default, brain": (ExperimentPlanner, MutualPlanner, BRAIN),
    "default, prostate": (ExperimentPlanner, MutualPlanner, PROSTATE),
    "default, with lowres": (ExperimentPlanner, MutualPlanner, ([300, 400, 400], [1.0, 0.8, 0.8])),
    "residual M, prostate": (nnUNetPlannerResEncM, MutualPlannerResEncM, PROSTATE),
    "residual L, brain": (nnUNetPlannerResEncL, MutualPlannerResEncL, BRAIN),
    "residual XL, prostate": (nnUNetPlannerResEncXL, MutualPlannerResEncXL, PROSTATE),
}


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(
            p, marks=SLOW if p in ("default, with lowres", "residual L, brain", "residual XL, prostate") else ()
        )
        for p in PAIRS
    ],
)
def test_one_network_alone_gets_stock_plans(nnunet_folders: Path, pair: str) -> None:
    stock, ours, image = PAIRS[pair]
    make_raw(nnunet_folders, image=image)
    expected = plan(stock)[0]
    found, said = plan(ours)
    assert found["plans_name"] != expected["plans_name"]
    assert found["experiment_planner_used"] == ours.__name__
    names = {name: entry["data_identifier"] for name, entry in found["configurations"].items() if "spacing" in entry}
    assert names == {name: f"{found['plans_name']}_{name}" for name in names} and len(names) >= 2
    assert ("3d_lowres" in names) == ("lowres" in pair)
    assert comparable(found) == comparable(expected)
    assert "Planning for PartialTrainer (every case annotates every label): 1 network" in said
    assert comparable(read_plans(expected["plans_name"])) == comparable(expected), "stock plans stay"


@pytest.mark.parametrize("number", ["0", "00"])
def test_without_processes_of_augmentation(nnunet_folders: Path, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As trainings in one process want it; nnU-Net's planners end in a traceback."""
    monkeypatch.setenv("nnUNet_n_proc_DA", number)
    make_raw(nnunet_folders, image=([32, 32, 32], [1.0, 1.0, 1.0]))
    found, _ = plan(for_("PartialTrainer"))
    assert found["configurations"]["3d_fullres"]["patch_size"] == [32, 32, 32]
    assert os.environ["nnUNet_n_proc_DA"] == number


def reckoned(configuration: dict[str, Any], needs: Needs, planner: Any) -> float:
    """GB of a plan, reckoned anew: nnU-Net's estimate of the batch and what the method adds to it."""
    entries = [configuration["architecture"][k] for k in ("network_class_name", "arch_kwargs", "_kw_requires_import")]
    patch, batch = configuration["patch_size"], configuration["batch_size"]
    flat = len(patch) == 2
    number = ExperimentPlanner.static_estimate_VRAM_usage(patch, 1, 4, *entries)
    reference = planner.UNet_reference_val_2d if flat else planner.UNet_reference_val_3d
    of = planner.UNet_reference_val_corresp_bs_2d if flat else planner.UNet_reference_val_corresp_bs_3d
    stock = planner.UNet_reference_val_corresp_GB * number / reference / of * batch
    design = Design(*entries, 1, 4, patch)
    more, alone = footprint(design, needs, -(-batch // 2), batch // 2), footprint(design, Needs(), batch)
    return stock + (more.fixed_mixed + more.changing_mixed - alone.fixed_mixed - alone.changing_mixed) / GIB


@pytest.mark.parametrize(
    ("planner", "image"),
    [
        pytest.param(MutualPlanner, BRAIN, id="default, brain"),
        pytest.param(MutualPlannerResEncM, PROSTATE, id="residual, prostate", marks=SLOW),
        pytest.param(MutualPlanner, PROSTATE, id="default, prostate", marks=SLOW),
        pytest.param(MutualPlannerResEncM, BRAIN, id="residual, brain", marks=SLOW),
    ],
)
def test_two_networks_fit(nnunet_folders: Path, planner: Any, image: Any) -> None:
    make_raw(nnunet_folders, image=image)
    stock = plan(for_("PartialTrainer", planner), 8)[0]["configurations"]["3d_fullres"]
    voxels, batches = {"stock": np.prod(stock["patch_size"])}, {"stock": stock["batch_size"]}
    common: dict[str, Any] = {"auxiliary": True, "labelled": 1, "unlabelled": 1, "features": (1,)}
    for memory in ("sequential", "joint"):
        plans, said = plan(for_(CORRELATION, planner, memory=memory), 8)
        instance = planner(901, 8, trainer="PartialTrainer")
        needs = Needs(memory=memory, terms=("soft targets", "correlation"), **common)
        for name, configuration in plans["configurations"].items():
            planned = configuration["mutual"]["planned"]
            assert planned["trainer"] == CORRELATION and planned["settings"] == {"memory": memory}
            assert planned["gigabytes"] <= 8
            assert reckoned(configuration, needs, instance) == pytest.approx(planned["gigabytes"], abs=0.06)
            assert f"{planned['gigabytes']} GB" in said and name in said
        fullres = plans["configurations"]["3d_fullres"]
        voxels[memory], batches[memory] = np.prod(fullres["patch_size"]), fullres["batch_size"]
    per_batch = {name: voxels[name] * batches[name] for name in voxels}
    assert per_batch["joint"] < 0.85 * per_batch["sequential"], "a second graph costs patch"
    assert per_batch["stock"] >= per_batch["sequential"] > 0.6 * per_batch["stock"], "its weights cost little"


def test_networks_run_jointly_where_that_costs_nothing(nnunet_folders: Path) -> None:
    make_raw(nnunet_folders, image=([32, 40, 32], [1.0, 1.0, 1.0]))
    plans, said = plan(for_(CORRELATION), 8)
    settings = {name: entry["mutual"]["planned"]["settings"] for name, entry in plans["configurations"].items()}
    assert settings["3d_fullres"] == {"memory": "joint"}
    assert "the same" in said


def test_moving_average_costs_little(nnunet_folders: Path) -> None:
    make_raw(nnunet_folders, unlabelled=1)
    stock, own = (plan(for_(name), 8)[0]["configurations"] for name in ("PartialTrainer", "MeanTeacherTrainer"))
    assert np.prod(own["3d_fullres"]["patch_size"]) > 0.8 * np.prod(stock["3d_fullres"]["patch_size"])
    assert "mutual" not in own["3d_fullres"], "it has nothing to be told"


def test_modality_groups_have_room_for_three_patches(nnunet_folders: Path) -> None:
    make_raw(nnunet_folders, channels=("T1", "FLAIR"), block=block(modality_groups=GROUPS), unlabelled=1)
    plans, said = plan(MutualPlanner, 8)
    fullres = plans["configurations"]["3d_fullres"]
    planned = fullres["mutual"]["planned"]
    assert fullres["batch_size"] == 3 and planned["gigabytes"] <= 8
    assert planned["trainer"] == "MutualCrossModalTrainer"
    assert planned["settings"] == {"memory": "sequential", "labelled_per_batch": 1, "unlabelled_per_batch": 2}
    assert "2 modality groups" in said and "2 moving averages" in said


def test_what_was_planned_for_a_batch_is_open_in_another_one(nnunet_folders: Path) -> None:
    make_raw(nnunet_folders, channels=("T1", "FLAIR"), block=block(modality_groups=GROUPS), unlabelled=1)
    plans, _ = plan(MutualPlanner, 8)
    new = new_configuration(plans, "3d_fullres", "new", Shape(batch=8), {"seed": 1})
    plans["configurations"]["new"] = new
    found = block_for(MutualCrossModalTrainer, merged_block(plans, "new"))
    assert found == {"memory": "auto", "labelled_per_batch": None, "unlabelled_per_batch": None, "seed": 1}
    assert "mutual" not in new_configuration(plans, "3d_fullres", "longer"), "of the same shape it stays"
    other = new_configuration(plans, "3d_fullres", "patch", Shape(features=(16,)))["mutual"]["planned"]["settings"]
    assert other == {"memory": "auto"}, "the division is of the batch"
    given = plan(for_("MutualCrossModalTrainer", memory="sequential"), 8)[0]
    assert "mutual" not in new_configuration(given, "3d_fullres", "patch", Shape(features=(16,))), "the user's word"


@pytest.mark.parametrize(
    ("given", "batch", "planned"),
    [
        ({"labelled_per_batch": 4, "unlabelled_per_batch": 4}, 8, (4, 4)),
        ({"unlabelled_per_batch": 2}, 3, (1, 2)),
        ({}, 2, (1, 1)),
    ],
)
def test_a_batch_holds_what_the_settings_ask_for(
    nnunet_folders: Path, given: dict[str, int], batch: int, planned: tuple[int, int]
) -> None:
    make_raw(nnunet_folders, unlabelled=1)
    configuration = plan(for_("SoftLabelTrainer", **given), 8)[0]["configurations"]["3d_fullres"]
    settings = block_for(SoftLabelTrainer, configuration.get("mutual", {}))
    names = ("labelled_per_batch", "unlabelled_per_batch")
    sizes = StreamSizes.of(configuration["batch_size"], *map(settings.get, names))
    assert (sizes.labelled, sizes.unlabelled) == planned and sum(planned) <= configuration["batch_size"] >= batch
    assert {name: settings[name] for name in given} == given


def test_needs_of_settings() -> None:
    table = AnnotationTable.from_dataset_json({"channel_names": {"0": "T1"}, "labels": PLAIN})
    taught = TaughtPartialTrainer.needs(TaughtPartialSettings(unlabelled_per_batch=4), table, [])
    assert (taught.labelled, taught.unlabelled, taught.averages) == (1, 4, 1)
    equal = MutualCorrelationTrainer.needs(MutualCorrelationSettings(second="equal", ema=0.9), table, [])
    assert (equal.networks, equal.averages) == (2, 2), "an average of each network that can be deployed"


CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing special": ({}, "PartialTrainer"),
    "imagesUn": ({"unlabelled": 1}, "MeanTeacherTrainer"),
    "a case that annotates nothing": (
        {"block": block({key: ALL if key != KEYS[0] else [] for key in KEYS})},
        "MeanTeacherTrainer",
    ),
    "different labels": ({"block": block({key: ALL[: 1 + (key == KEYS[0])] for key in KEYS})}, "TaughtPartialTrainer"),
    "groups": ({"block": block(modality_groups=GROUPS), "channels": ["T1", "FLAIR"]}, "MutualCrossModalTrainer"),
}


@pytest.mark.parametrize("dataset", CHOICES)
def test_choice_of_the_trainer(nnunet_folders: Path, dataset: str) -> None:
    options, expected = CHOICES[dataset]
    make_raw(nnunet_folders, **options)
    method = MutualPlanner(901).budget.method
    assert method.trainer == expected and method.needs.as_stock == (expected == "PartialTrainer")


def test_groups_of_partial_labels_are_networks(nnunet_folders: Path) -> None:
    labels = dict(zip(KEYS, (["liver"], ["tumour"], ["spleen"], ["spleen"]), strict=True))
    make_raw(nnunet_folders, block=block(labels))
    method = MutualPlanner(901, trainer="MutualPartialTrainer", settings={"stage1_networks": "groups"}).budget.method
    assert method.needs.networks == 3 and method.needs.partial


def test_impossible_budget(nnunet_folders: Path) -> None:
    preprocessed = make_raw(nnunet_folders, image=([40, 40, 40], [1.0, 1.0, 1.0]))
    before = sorted(preprocessed.iterdir())
    method = for_(CORRELATION, memory="joint")
    with pytest.raises(MutualError, match=r"MutualCorrelationTrainer does not fit 0\.05 GB: 2 networks") as caught:
        plan(method, 0.05)
    assert [path for path in sorted(preprocessed.iterdir()) if path.name != "dataset.json"] == before
    needed = float(str(caught.value).split(" GB with a patch")[0].split()[-1])
    assert needed > 0.07
    plans, _ = plan(method, needed)
    assert plans["configurations"]["3d_fullres"]["mutual"]["planned"]["gigabytes"] <= needed + 0.05, "rounded"
    with pytest.raises(MutualError, match="does not fit"):
        plan(method, needed - 0.02)


def test_impossible_budget_of_one_network(nnunet_folders: Path) -> None:
    make_raw(nnunet_folders)
    with pytest.raises(MutualError, match=r"PartialTrainer does not fit 0\.01 GB: 1 network need"):
        plan(MutualPlanner, 0.01)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"trainer": "MutualPartailTrainer"}, "did you mean 'MutualPartialTrainer'"),
        ({"trainer": "RectifiedPredictor"}, "no trainer is called 'RectifiedPredictor'"),
        ({"trainer": "MeanTeacherTrainer", "settings": {"peers": 2}}, 'unknown setting "peers" of --set for Mean'),
        ({"trainer": "MutualCrossModalTrainer"}, "declares no modality group"),
    ],
)
def test_wrong_method(nnunet_folders: Path, options: dict[str, Any], sentence: str) -> None:
    make_raw(nnunet_folders)
    with pytest.raises(MutualError, match=sentence):
        MutualPlanner(901, **options)


def test_other_trainers_leave_aside_what_was_planned(nnunet_folders: Path) -> None:
    class Own(MutualCorrelationTrainer):
        """Somebody's."""

    made = {
        "planned": {"trainer": CORRELATION, "settings": {"memory": "joint", "ramp": 0.5}, "gigabytes": 7.0},
        "seed": 1,
    }
    assert block_for(PartialTrainer, made) == {"seed": 1}
    assert block_for(MutualCorrelationTrainer, made) == {"memory": "joint", "ramp": 0.5, "seed": 1}
    assert block_for(Own, made) == block_for(MutualCorrelationTrainer, made)
    assert block_for(Own, {**made, "memory": "sequential"})["memory"] == "sequential", "the user has the last word"


def test_custom_configurations_survive(nnunet_folders: Path) -> None:
    preprocessed = make_raw(nnunet_folders)
    plan(MutualPlanner)
    file = preprocessed / "nnUNetMutualPlans.json"
    content = json.loads(file.read_text())
    content["configurations"]["3d_fullres_long"] = {"inherits_from": "3d_fullres", "mutual": {"num_epochs": 2000}}
    file.write_text(json.dumps(content))
    again, _ = plan(for_(CORRELATION), 8)
    assert again["configurations"]["3d_fullres_long"] == content["configurations"]["3d_fullres_long"]
    assert file.parent.name == NAME
