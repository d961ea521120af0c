"""What users of 0.1.0 have keeps working: its checkpoints, and the names that their code imports."""

from __future__ import annotations

import json
import math
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from first_release import NAMES, put
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from training import lines_of, trainer_for

from nnunet_mutual import config, plugin, trainers
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.engine.trained import open_trained
from nnunet_mutual.errors import MutualError
from nnunet_mutual.plugin.find import SHIM_FOLDER
from nnunet_mutual.settings import Settings


def test_there_are_checkpoints_of_every_kind_of_training() -> None:
    later = {"RectifiedPredictor", "SoftLabelTrainer", "TaughtPartialTrainer"}
    assert {*NAMES} == {*trainers.__all__} - later


@pytest.mark.parametrize("name", NAMES)
def test_a_training_goes_on(nnunet_folders: Path, name: str) -> None:
    preprocessed, _, checkpoint = put(nnunet_folders, name)
    trainer = trainer_for(preprocessed, getattr(trainers, name), resume="latest")
    assert (trainer.current_epoch, trainer.iteration) == (1, 1)
    stored = checkpoint["mutual_state"]["peers"]
    for network, weights in zip(trainer.peers.networks, stored["networks"], strict=True):
        for key, value in unwrap(network).state_dict().items():
            assert torch.equal(value, weights[key])
    for optimizer, state in zip(trainer.peers.optimizers, stored["optimizers"], strict=True):
        kept = optimizer.state_dict()["state"]
        assert kept.keys() == state["state"].keys() != set()
        assert all(torch.equal(kept[n][key], old[key]) for n, old in state["state"].items() for key in old)
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    epochs = lines_of(trainer)
    assert [line["epoch"] for line in epochs] == list(range(1, trainer.num_epochs))
    assert all(math.isfinite(value) for line in epochs for value in line["terms"].values())


def test_a_training_of_other_defaults_is_refused(nnunet_folders: Path) -> None:
    preprocessed, fold, _ = put(nnunet_folders, "MutualCrossModalTrainer", settings={})
    before = (fold / "checkpoint_latest.pth").read_bytes()
    with pytest.raises(MutualError, match=r"form: contrast -> averages; ramp: 0.4 -> 0.2\); put the old ones into"):
        trainer_for(preprocessed, trainers.MutualCrossModalTrainer, resume="latest")
    assert (fold / "checkpoint_latest.pth").read_bytes() == before


def test_a_training_of_other_defaults_is_asked_as_it_was(nnunet_folders: Path) -> None:
    _, fold, _ = put(nnunet_folders, "MutualCrossModalTrainer", settings={})
    trainer = open_trained(fold.parent, "0", "checkpoint_latest.pth", torch.device("cpu"))
    assert (trainer.settings.form, trainer.settings.ramp) == ("contrast", 0.4)


def test_a_training_validates(nnunet_folders: Path) -> None:
    preprocessed, fold, _ = put(nnunet_folders, "PartialTrainer")
    trainer_for(preprocessed, resume="latest").perform_actual_validation()
    cases = json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]
    assert len(cases) == len(list((fold / "validation").glob("case_*.nii.gz"))) > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "MutualCrossModalTrainer"])
def test_stock_nnunet_predicts(nnunet_folders: Path, name: str) -> None:
    """The cross-modal trainer's folders never did."""
    _, fold, checkpoint = put(nnunet_folders, name)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), (0,), "checkpoint_latest.pth")
    for key, value in predictor.network.state_dict().items():
        assert torch.equal(value, checkpoint["network_weights"][key])
    image = np.random.default_rng(0).normal(size=(1, 16, 20, 18)).astype(np.float32)
    assert predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]}).shape == (16, 20, 18)


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert plugin.resolve("trainers", "PartialTrainer") is trainers.PartialTrainer  # shims that were registered
    assert config.Settings is Settings
    (script,) = entry_points(group="console_scripts", name="nnunet_mutual")
    assert script.load()(["trainers"]) == 0
    assert capsys.readouterr().out.strip() == str(SHIM_FOLDER)
