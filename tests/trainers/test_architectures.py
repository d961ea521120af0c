"""Every trainer with every network that nnU-Net builds from plans, or a sentence that says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modalities import make_preprocessed
from test_mixed_precision import NAMES
from torch import Tensor, nn
from training import GROUPS, SHORT, change_settings, partial_block, trainer_for
from two_streams import two_stream_dataset

import nnunet_mutual.trainers as trainers
from nnunet_mutual.errors import MutualError

FEW = {**SHORT, "num_epochs": 2, "num_iterations_per_epoch": 2}
UNETS = "dynamic_network_architectures.architectures.unet"


def with_network(preprocessed: Path, name: str) -> None:
    """Lets the plans name another network, of the same size."""
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]
    network["network_class_name"] = name
    network["arch_kwargs"]["n_blocks_per_stage"] = network["arch_kwargs"].pop("n_conv_per_stage")
    file.write_text(json.dumps(plans))


def dataset_of(trainer: str, folders: Path) -> Path:
    if trainer == "MutualCrossModalTrainer":
        return make_preprocessed(folders, settings=FEW)
    settings = FEW | (GROUPS if trainer == "MutualPartialTrainer" else {})
    return two_stream_dataset(folders, block=partial_block(), settings=settings)


@pytest.mark.parametrize("network", ["ResidualEncoderUNet", "ResidualUNet"])
@pytest.mark.parametrize("name", NAMES)
def test_trains_residual_networks(name: str, network: str, nnunet_folders: Path) -> None:
    preprocessed = dataset_of(name, nnunet_folders)
    with_network(preprocessed, f"{UNETS}.{network}")
    trainer = trainer_for(preprocessed, getattr(trainers, name))
    if (name, network) == ("MutualCrossModalTrainer", "ResidualUNet"):
        with pytest.raises(MutualError, match="does not say which layer reads the image; plan a U-Net"):
            trainer.initialize()
        return
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()


class Patches(nn.Module):
    """A network without decoder stages, as transformers are."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(channels, 4, 2, 2), nn.GELU(), nn.ConvTranspose3d(4, outputs, 2, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class OwnNetwork:
    """What nnU-Net's own trainers of Primus change: network and deep supervision."""

    enable_deep_supervision = property(lambda self: False, lambda self, asked: None)

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return Patches(num_input_channels, num_output_channels)


@pytest.mark.parametrize("name", NAMES)
def test_a_subclass_may_bring_a_network_of_its_own(name: str, nnunet_folders: Path) -> None:
    """All train that need no stages of an encoder or decoder; of the others a sentence says what they need."""
    wants = {
        "MutualCorrelationTrainer": "no encoder stages",
        "MutualPrototypeTrainer": "no decoder stages",
        "MutualPartialTrainer": "no decoder stages",  # with groups
        "MutualCrossModalTrainer": "does not say which layer reads the image",
    }
    own = type(name, (OwnNetwork, getattr(trainers, name)), {})
    dataset = dataset_of(name, nnunet_folders)
    trainer = trainer_for(dataset, own)
    if name in wants:
        with pytest.raises(MutualError, match=wants[name]):
            trainer.run_training()
        if name != "MutualPartialTrainer":
            return
        change_settings(dataset, **FEW)  # one network in each stage
        trainer = trainer_for(dataset, own)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
