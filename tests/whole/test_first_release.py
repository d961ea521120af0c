"""What users of 0.1.0 have keeps working: its checkpoints, and the names that their code imports."""

from __future__ import annotations

import json
import lzma
import math
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from modalities import make_preprocessed
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from training import lines_of, partial_block, trainer_for
from two_streams import two_stream_dataset

from nnunet_mutual import config, plugin, trainers
from nnunet_mutual.engine.peers import unwrap
from nnunet_mutual.plugin.find import SHIM_FOLDER
from nnunet_mutual.settings import Settings

CHECKPOINTS = Path(__file__).resolve().parents[1] / "fixtures" / "0.1.0"
NAMES = [file.name.removesuffix(".pth.xz") for file in sorted(CHECKPOINTS.glob("*.pth.xz"))]
DATASETS = {
    "PartialTrainer": lambda root: tiny.make_dataset(root, block=partial_block()),
    "MutualPartialTrainer": lambda root: tiny.make_dataset(root, block=partial_block()),
    "MutualCrossModalTrainer": make_preprocessed,
}


def put(root: Path, name: str) -> tuple[Path, Path, dict[str, Any]]:
    """Returns dataset and fold of a training of 0.1.0 that was stopped, and its checkpoint."""
    preprocessed = DATASETS.get(name, two_stream_dataset)(root)
    fold = root / "nnUNet_results" / tiny.NAME / f"{name}__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    content = lzma.decompress((CHECKPOINTS / f"{name}.pth.xz").read_bytes())
    (fold / "checkpoint_latest.pth").write_bytes(content)
    checkpoint = torch.load(fold / "checkpoint_latest.pth", weights_only=True)
    for folder in (preprocessed, fold.parent):
        (folder / "dataset.json").write_text(json.dumps(checkpoint["init_args"]["dataset_json"]))
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(checkpoint["init_args"]["plans"]))
    (fold.parent / "plans.json").write_text(json.dumps(checkpoint["init_args"]["plans"]))
    return preprocessed, fold, checkpoint


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
