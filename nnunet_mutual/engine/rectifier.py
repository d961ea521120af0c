"""The prototypes of a training, their moving average, and the teacher that they rectify."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nnunet_mutual.engine.cuda_graphs import RecordedCall
from nnunet_mutual.engine.networks import Networks
from nnunet_mutual.engine.parts import part
from nnunet_mutual.engine.peers import Peers
from nnunet_mutual.modules.ema import MovingAverage
from nnunet_mutual.modules.interaction import DynamicInteraction, RectifiedNetwork, feature_maps
from nnunet_mutual.objectives.prototypes import PrototypeObjective
from nnunet_mutual.objectives.supervised import SupervisedObjective


class Rectifier:
    """Builds what rectifies the moving average of a training's first network.

    Args:
        networks: of the training.
        supervised: loss of what cases annotate.
        decay: of the moving average of the prototypes, that of the network.
        weight: of the loss of the class scores.

    Attributes:
        objective: what teaches the prototypes.
        network: the rectified teacher, once it is attached.
    """

    def __init__(self, networks: Networks, supervised: SupervisedObjective, decay: float, weight: float):
        self.networks = networks
        configuration, knowledge = networks.configuration, supervised.knowledge
        self.maps = feature_maps(configuration.patch_size, configuration.network_arch_init_kwargs)
        interaction = DynamicInteraction(self.maps, knowledge.num_outputs).to(networks.device)
        self.average = MovingAverage(interaction, decay)
        self.objective = PrototypeObjective(
            knowledge,
            supervised,
            interaction,
            self.average,
            [features.stride for features in self.maps],
            self.ask,
            weight=weight,
        )

    def attach(self, peers: Peers) -> None:
        """Rectifies the moving average of the first network."""
        self.average.restart(self.objective.interaction)  # whose weights came from the first process meanwhile
        parts: Any = peers.averages[0].network, self.average.network, self.maps
        self.network = RectifiedNetwork(*parts).eval()
        in_parts = self.networks.compiled(RectifiedNetwork(*parts, in_parts=True).eval())
        self._in_parts = RecordedCall(in_parts, peers.recorded.__len__)

    def ask(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the teacher's logits of every level, and the class scores."""
        with part("teacher"):
            said: tuple[list[Tensor], Tensor] = self._in_parts(images)
        return said
