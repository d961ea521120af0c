"""What the benchmark runner keeps of a training, on tiny ones."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from modalities import make_preprocessed
from training import SHORT, partial_block, trainer_for, weights

from nnunet_mutual.trainers import MutualCrossModalTrainer, MutualPartialTrainer
from nnunet_mutual.trainers.mutual_partial import MutualPartialSettings

GROUPS = {"T1": ["T1"], "FLAIR": ["FLAIR"]}
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, nnunet_folders: Path) -> Any:
    """Trains a trainer as the runner does, keeping first stages in ``nnunet_folders``."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    settings, staged = (importlib.import_module(name) for name in ("settings", "staged"))
    setting = SimpleNamespace(labelled=None, weights_file=lambda *_: nnunet_folders / "kept" / "network.pth")

    def run(trainer: Any, deployed: str = "final") -> dict[str, Any]:
        trainer.initialize()
        network = settings.Network("data", type(trainer).__name__, deployed=deployed)
        result: dict[str, Any] = staged.train(setting, network, settings.Schedule(9, 0.01), 0, trainer)
        return result

    return run


def test_another_arm_starts_from_the_first_stage(nnunet_folders: Path, train: Any) -> None:
    lax = {"label": False, "voxel": False}
    settings = {**SHORT, "pseudo_labels": lax}
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=settings)
    first = trainer_for(preprocessed, MutualPartialTrainer)
    found = train(first)
    assert found["updates"] == 9 and found["networks"] == 1 and found["stage1"][1] == [list(first.table.labels)]
    assert all(torch.equal(value, weights(first)[name]) for name, value in found["network_weights"].items())

    second, steps = trainer_for(preprocessed, MutualPartialTrainer), []
    original = second.train_step
    second.train_step = lambda batch: (steps.append(second.stage_number), original(batch))[1]
    again = train(second)
    assert set(steps) == {2}, "the first stage is not trained again"
    assert all(torch.equal(value, found["network_weights"][name]) for name, value in again["network_weights"].items())


def test_a_first_stage_is_kept_with_the_number_of_labelled_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    settings, staged = (importlib.import_module(name) for name in ("settings", "staged"))
    trainer = SimpleNamespace(settings=MutualPartialSettings())
    of_numbers = [settings.Setting(f"hippocampus_sources_{number}", Path()) for number in (1, 2)]
    network, schedule = of_numbers[0].networks("rounds")[0], settings.Schedule(9, 0.01)
    assert len({staged.stage1_folder(one, network, schedule, 0, trainer) for one in of_numbers}) == 2


def test_a_group_keeps_the_columns_that_it_uses(nnunet_folders: Path, train: Any) -> None:
    trainer = trainer_for(make_preprocessed(nnunet_folders, groups=GROUPS, settings=SHORT), MutualCrossModalTrainer)
    groups = train(trainer, "group:T1")["groups"]
    assert list(groups) == list(trainer.groups.channels)
    for (name, channels), found in zip(trainer.groups.channels.items(), groups.values(), strict=True):
        first = next(value for key, value in found.items() if value.ndim == 5)
        assert first.shape[1] == len(channels), name
