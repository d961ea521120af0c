"""The memory model against steps on the CPU, of small networks; benchmarks/memory.py does the same for larger ones."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import modalities
import pytest
import tiny
from training import GROUPS, SHORT, partial_block, trainer_for
from two_streams import two_stream_dataset

import nnunet_mutual.trainers as trainers
from nnunet_mutual.planning.memory import Design, Trace, footprint
from nnunet_mutual.planning.needs import Needs
from nnunet_mutual.planning.terms import TERMS

BAR = 0.15
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {  # trainer, configuration, settings
    "one network": ("PartialTrainer", "3d_fullres", {}),
    "two networks, joint": ("MutualPartialTrainer", "3d_fullres", {**GROUPS, "memory": "joint"}),
    "two networks, sequential": ("MutualPartialTrainer", "2d", {**GROUPS, "memory": "sequential", "ema": 0.9}),
    "taught, joint": ("TaughtPartialTrainer", "3d_aniso", {"networks": 2, "memory": "joint"}),
    "mean teacher": ("MeanTeacherTrainer", "3d_aniso", {"optimizer": "adamw"}),
    "correlation, joint": ("MutualCorrelationTrainer", "3d_fullres", {"memory": "joint"}),
    "correlation, sequential": ("MutualCorrelationTrainer", "3d_aniso", {"memory": "sequential"}),
    "prototypes": ("MutualPrototypeTrainer", "3d_fullres", {}),
    "cross-modal, sequential": ("MutualCrossModalTrainer", "3d_fullres", {"memory": "sequential"}),
    "contrasted, sequential": ("MutualCrossModalTrainer", "3d_fullres", {"memory": "sequential", "form": "contrast"}),
}


@pytest.fixture()
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("memory")


@pytest.mark.parametrize("method", METHODS)
def test_predicted_as_measured(nnunet_folders: Path, bench: ModuleType, method: str) -> None:
    name, configuration, settings = METHODS[method]
    settings = {**SHORT, **settings}
    if name == "MutualCrossModalTrainer":
        preprocessed = modalities.make_preprocessed(nnunet_folders, settings=settings)
    elif "Partial" in name:
        preprocessed = tiny.make_dataset(
            nnunet_folders, block=partial_block(), settings=settings, configurations=(configuration,)
        )
    else:
        preprocessed = two_stream_dataset(nnunet_folders, configuration=configuration, settings=settings)
    trainer = trainer_for(preprocessed, getattr(trainers, name), configuration)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    measured = bench.measured(trainer)
    assert abs(bench.predicted(trainer) / measured - 1) < BAR, (bench.predicted(trainer), measured)


ARCHITECTURE = tiny.plans()["configurations"]["3d_fullres"]["architecture"]
DESIGN = Design(
    ARCHITECTURE["network_class_name"],
    ARCHITECTURE["arch_kwargs"],
    ARCHITECTURE["_kw_requires_import"],
    channels=1,
    outputs=4,
    patch_size=[16, 16, 16],
)


def test_each_network_adds_its_own() -> None:
    one, three = (footprint(DESIGN, Needs(networks=n, memory="joint"), 2) for n in (1, 3))
    alone = footprint(DESIGN, Needs(networks=3), 2)
    assert three.states == alone.states == 3 * one.states
    assert three.graphs == 3 * one.graphs and alone.graphs == one.graphs
    assert three.loss == one.loss == alone.loss
    teacher = footprint(DESIGN, Needs(averages=1), 2)
    assert teacher.states - one.states == one.states // 3, "weights alone, where others have a gradient and momentum"


def test_adamw_keeps_two_values() -> None:
    sgd, adamw = (footprint(DESIGN, Needs(optimizer_values=n), 2).states for n in (1, 2))
    assert adamw == 4 * sgd // 3


def test_graphs_grow_with_batch_and_patch() -> None:
    once, batch = footprint(DESIGN, Needs(), 2), footprint(DESIGN, Needs(), 4)
    larger = footprint(replace(DESIGN, patch_size=[32, 16, 16]), Needs(), 2)
    assert batch.changing_mixed == pytest.approx(2 * once.changing_mixed, rel=0.01)
    assert larger.changing_mixed == pytest.approx(2 * once.changing_mixed, rel=0.01)
    assert once.fixed_mixed == batch.fixed_mixed == larger.fixed_mixed


def test_recorded_features_count_one_at_a_time() -> None:
    trace = Trace(DESIGN, Needs(networks=2, features=(1,)), 2)
    more = trace.footprint("sequential").recorded - trace.footprint("joint").recorded
    assert more == 2 * 2 * 4 * 16**3 * 4  # networks, samples, channels, voxels, bytes


@pytest.mark.parametrize(
    ("batch", "least", "expected"), [(2, 1, (1, 1)), (3, 2, (1, 2)), (5, 1, (3, 2)), (4, 3, (1, 3))]
)
def test_division_of_a_batch(batch: int, least: int, expected: tuple[int, int]) -> None:
    assert Needs(labelled=1, unlabelled=least).split(batch) == expected
    assert Needs().split(batch) == (batch, 0)


def test_regions() -> None:
    regions = replace(DESIGN, outputs=3, regions=True)
    needs = Needs(auxiliary=True, labelled=1, unlabelled=1, terms=tuple(TERMS))
    for partial in (False, True):
        assert footprint(regions, replace(needs, partial=partial), 1, 1).loss > 3 * 16**3 * 4
