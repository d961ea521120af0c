"""Forms that were only tried: what is special about each, and that stock nnU-Net gets one network."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from training import largest_difference, trainer_for
from two_streams import two_stream_dataset

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROTOCOL = json.loads((BENCHMARKS / "protocol" / "hippocampus_few.json").read_text())


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("forms")


def settings_of(arm: str) -> dict[str, Any]:
    return {**PROTOCOL["arms"][arm]["networks"][0]["settings"], "ramp": 0.01}


def tried() -> list[str]:
    """Arms whose trainer is not of the package."""
    source = (BENCHMARKS / "forms" / "__init__.py").read_text()
    return [arm for arm, entry in PROTOCOL["arms"].items() if f'"{entry["networks"][0]["trainer"]}"' in source]


@pytest.mark.parametrize("arm", tried())
def test_stock_loads_what_a_form_deploys(forms: ModuleType, nnunet_folders: Path, arm: str) -> None:
    preprocessed = two_stream_dataset(nnunet_folders, settings=settings_of(arm))
    trainer = trainer_for(preprocessed, getattr(forms, PROTOCOL["arms"][arm]["networks"][0]["trainer"]))
    trainer.run_training()
    stock = trainer_for(preprocessed, nnUNetTrainer)
    stock.initialize()
    stock.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    deployed = trainer.peers.averages[0].network.state_dict()
    assert largest_difference(stock.network.state_dict(), deployed) == 0


def test_forms_have_the_means_of_their_control(forms: ModuleType) -> None:
    control = PROTOCOL["arms"]["mean_teacher_boxes"]["networks"][0]["settings"]
    assert len(tried()) == len(forms.__all__)
    for arm in (*tried(), "consensus_boxes"):
        assert control.items() <= PROTOCOL["arms"][arm]["networks"][0]["settings"].items(), arm


def test_voxels_count_by_how_much_averages_agree(forms: ModuleType) -> None:
    agreeing = importlib.import_module("forms.agreeing")
    one, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    soft, softer = torch.tensor([0.8, 0.2, 0.0]), torch.tensor([0.4, 0.6, 0.0])
    first, second = (torch.stack(values, 1)[None] for values in ((one, one, soft), (one, other, softer)))
    kl = (0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4) + 0.4 * math.log(0.4 / 0.6) + 0.6 * math.log(1.5)) / 2
    expected = torch.tensor([[[1.0, 0.5, math.exp(-kl)]]])
    torch.testing.assert_close(agreeing.accord([first, second]), expected)
    torch.testing.assert_close(agreeing.accord([second, first]), expected)
