"""Forms of modality networks that were only tried."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from modalities import make_preprocessed
from prepared import prepare
from training import SHORT, trainer_for

from nnunet_mutual.objectives import Output

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
AVERAGES = {"form": "averages", "ramp": 0.01}


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("forms")


def started(root: Path, kind: Any, **settings: Any) -> Any:
    trainer = trainer_for(make_preprocessed(root, settings={**SHORT, "memory": "joint", **settings}), kind)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


@pytest.mark.parametrize(("name", "power"), [("WeightedModalTrainer", 1), ("SteepModalTrainer", 4)])
def test_who_knows_a_class_teaches_more_of_it(forms: ModuleType, nnunet_folders: Path, name: str, power: int) -> None:
    trainer = started(nnunet_folders, getattr(forms, name), **AVERAGES)
    teaching = trainer.objectives[0].teaching
    dice = torch.tensor([[float("nan"), 0.9, 0.5, 0.2], [float("nan"), 0.8, 0.6, 0.2], [float("nan"), 0.1, 0.1, 0.2]])
    teaching.scores = dice
    plain = 1 / (1 - dice[:, 1:] + 0.05)
    plain = torch.cat([plain.mean(1, keepdim=True), plain], 1) ** power
    torch.testing.assert_close(teaching.weights()[:, 0], plain)
    sees = torch.tensor([[True, False], [True, True], [False, True]])
    for sample, seen in enumerate(sees.T.tolist()):
        expected = plain * torch.tensor([[1.0 if there else 1e-6] for there in seen])
        torch.testing.assert_close(teaching.weights(sees)[:, sample], expected)
    said = trainer.train_step(next(trainer.dataloader_train))
    assert all(value != 0 for value in said["terms"])


def test_averages_with_the_contrast(forms: ModuleType, nnunet_folders: Path) -> None:
    trainer = started(nnunet_folders, forms.ContrastedModalTrainer, **AVERAGES)
    said = trainer.train_step(next(trainer.dataloader_train))
    by_name = dict(zip(trainer.stage.term_names, said["terms"], strict=True))
    assert all(by_name[f"{term}[{n}]"] != 0 for n in range(3) for term in ("supervised", "consistency", "contrast"))
    trainer.current_epoch = trainer.num_epochs - 1  # to the end
    by_name = dict(
        zip(trainer.stage.term_names, trainer.train_step(next(trainer.dataloader_train))["terms"], strict=True)
    )
    assert all(by_name[f"contrast[{n}]"] != 0 for n in range(3))


def test_everybody_learns_from_the_ensemble(forms: ModuleType, nnunet_folders: Path) -> None:
    trainer = started(nnunet_folders, forms.EnsembleRelearningTrainer, form="contrast", passes=1)
    objective, batch = trainer.objectives[0], trainer.training_batch(next(trainer.dataloader_train))
    trainer.current_epoch = trainer.num_epochs - 1
    number = batch.views.unlabelled
    outputs = [Output([torch.zeros(len(batch.keys), 4, *batch.data.shape[2:])])] * 3
    step = prepare(objective, outputs, batch, trainer.progress())
    expected = torch.stack([trainer._soft_label(n, batch.data[:number]) for n in range(3)]).mean(0)
    assert sorted(step.soft) == [0, 1, 2]
    for target, counted in step.soft.values():
        torch.testing.assert_close(target, expected)
        assert torch.equal(counted, batch.views.inside[:number])
