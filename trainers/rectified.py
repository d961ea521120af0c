"""What predicts from ``checkpoint_rectified.pth``."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_mutual.errors import MutualError
from nnunet_mutual.modules.interaction import DynamicInteraction, RectifiedNetwork, feature_maps


class RectifiedPredictor(nnUNetTrainer):
    """A network of the plans with the prototypes that rectify it: ``nnUNetv2_predict -chk checkpoint_rectified.pth``.

    It predicts where this package is found, and trains nothing.
    """

    def __init__(self, *arguments: Any, **named: Any):
        raise MutualError(
            "RectifiedPredictor only predicts, from the checkpoint_rectified.pth of MutualPrototypeTrainer; train with "
            "-tr MutualPrototypeTrainer"
        )

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Returns the network of the plans with prototypes (nnU-Net's hook)."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        maps = feature_maps(configuration_manager.patch_size, configuration_manager.network_arch_init_kwargs)
        return RectifiedNetwork(network, DynamicInteraction(maps, num_output_channels), maps)
